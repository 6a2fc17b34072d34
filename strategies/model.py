"""The former name of ``tracepaper.strategies.api.model``, which users' classes import."""

from tracepaper.strategies.api.model import *  # noqa: F403
