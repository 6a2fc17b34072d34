"""Names that nothing in the product reads, each with its reason; vulture counts them as read.

A name that is not here and that nothing reads is removed, or wired to a command.
"""

# ruff: noqa: B018, F821
# mypy: ignore-errors

# Called by name: entry points, the protocols of Python and of libraries.
list_models, doctor, notify_test, export_account, whatif
__getattr__, __dir__, __instancecheck__, __subclasscheck__
_repr_html_  # notebooks
_repr_png_  # notebooks
best_run  # of a sweep, from Python
attention_map  # of a checkpoint, from Python
rollout_entropy, while_down  # stored by their columns' names
frame_data  # an argument of backtest and sweep, handed on by name
__annotations__  # typer reads them
collect  # prometheus_client asks for the metrics
model_config  # pydantic
writeable  # an attribute that numpy reads
no_wrap, overflow  # attributes that rich reads
representation, interpretable_model  # captum asks for them
open_time  # of a decision's context, for users' classes

# Read and derived from by classes of users' own, and classes for them to copy from.
BoostedTree, FadingAttention, Trend, Grid, RsiReversion, LightGBM
open_time  # of a context

# Keys of [exits], read by their names.
minimal_roi

# Keys of a recipe, read by their names.
train_until, validation_until, calibration_until

# Written whole, as documents, rows or frames of a notebook.
exit_sequence, hit_rate, lines_first, must_pass, profit_factor
shadow_equity

# Required of a body, so that one of another shape is refused.
time_second, time_nano

# Figures of a report, read by their paths.
final_median, volatility_day, drawdown_bars, below_zero_ms, calmar, peak_ms, trough_ms, recovered_ms
period_correlation

# Answers of the HTTP interface, read by the page and by other people's tools.
ended_ms, average_price_text, decision_sequence, quantity_text
last_refusal, last_fill, first_sequence, last_sequence, bars_from_ms

# What libraries read: the command's name.
ui

# The library of attention: what is asked for by its name.
gated_rise  # by its name in relevance_rules
