"""The former name of ``replay.document.values``, while the judging of models imports it."""

from tracepaper.replay.document.values import Figure, Form, Table, Value, table

__all__ = ["Figure", "Form", "Table", "Value", "table"]
