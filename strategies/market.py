"""The former name of ``tracepaper.strategies.units``, which users' classes import."""

from tracepaper.strategies.units import *  # noqa: F403
