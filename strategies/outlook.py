"""The former name of ``tracepaper.strategies.api.context``, which users' classes import."""

from tracepaper.strategies.api.context import *  # noqa: F403
