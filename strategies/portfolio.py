"""The former name of ``tracepaper.strategies.api.strategy``, which users' classes import."""

from tracepaper.strategies.api.strategy import *  # noqa: F403
