"""The data types, in processing order: instruments and events, then decisions and steps."""

from __future__ import annotations

from tracepaper.strategies.types.calibration import (
    CALIBRATED as CALIBRATED,
)
from tracepaper.strategies.types.calibration import (
    CONFIDENCES as CONFIDENCES,
)
from tracepaper.strategies.types.calibration import (
    ENTROPY as ENTROPY,
)
from tracepaper.strategies.types.calibration import (
    MARGIN as MARGIN,
)
from tracepaper.strategies.types.calibration import (
    MAX_REGIMES as MAX_REGIMES,
)
from tracepaper.strategies.types.calibration import (
    REGIME_MEASURES as REGIME_MEASURES,
)
from tracepaper.strategies.types.calibration import (
    Calibration as Calibration,
)
from tracepaper.strategies.types.calibration import (
    FittedConfidence as FittedConfidence,
)
from tracepaper.strategies.types.calibration import (
    GateCoverage as GateCoverage,
)
from tracepaper.strategies.types.calibration import (
    LinearScore as LinearScore,
)
from tracepaper.strategies.types.calibration import (
    RegimeCells as RegimeCells,
)
from tracepaper.strategies.types.calibration import (
    coverage_share as coverage_share,
)
from tracepaper.strategies.types.decisions import (
    BLOCK_BARS as BLOCK_BARS,
)
from tracepaper.strategies.types.decisions import (
    Account as Account,
)
from tracepaper.strategies.types.decisions import (
    Action as Action,
)
from tracepaper.strategies.types.decisions import (
    Confirmation as Confirmation,
)
from tracepaper.strategies.types.decisions import (
    Decision as Decision,
)
from tracepaper.strategies.types.decisions import (
    DecisionOutcome as DecisionOutcome,
)
from tracepaper.strategies.types.decisions import (
    Explanation as Explanation,
)
from tracepaper.strategies.types.decisions import (
    Fill as Fill,
)
from tracepaper.strategies.types.decisions import (
    FillModel as FillModel,
)
from tracepaper.strategies.types.decisions import (
    Forecast as Forecast,
)
from tracepaper.strategies.types.decisions import (
    GateSet as GateSet,
)
from tracepaper.strategies.types.decisions import (
    LastDecision as LastDecision,
)
from tracepaper.strategies.types.decisions import (
    LedgerEntry as LedgerEntry,
)
from tracepaper.strategies.types.decisions import (
    LedgerKind as LedgerKind,
)
from tracepaper.strategies.types.decisions import (
    Liquidity as Liquidity,
)
from tracepaper.strategies.types.decisions import (
    Order as Order,
)
from tracepaper.strategies.types.decisions import (
    OrderKind as OrderKind,
)
from tracepaper.strategies.types.decisions import (
    OrderRole as OrderRole,
)
from tracepaper.strategies.types.decisions import (
    OrderStatus as OrderStatus,
)
from tracepaper.strategies.types.decisions import (
    Position as Position,
)
from tracepaper.strategies.types.decisions import (
    Prediction as Prediction,
)
from tracepaper.strategies.types.decisions import (
    PredictionTimeout as PredictionTimeout,
)
from tracepaper.strategies.types.decisions import (
    Regime as Regime,
)
from tracepaper.strategies.types.decisions import (
    RunRow as RunRow,
)
from tracepaper.strategies.types.decisions import (
    ShadowStep as ShadowStep,
)
from tracepaper.strategies.types.decisions import (
    Step as Step,
)
from tracepaper.strategies.types.market import (
    BY_REST as BY_REST,
)
from tracepaper.strategies.types.market import (
    EXCHANGE_CATEGORIES as EXCHANGE_CATEGORIES,
)
from tracepaper.strategies.types.market import (
    LEVERAGE_DECIMALS as LEVERAGE_DECIMALS,
)
from tracepaper.strategies.types.market import (
    Bar as Bar,
)
from tracepaper.strategies.types.market import (
    BookUpdate as BookUpdate,
)
from tracepaper.strategies.types.market import (
    Category as Category,
)
from tracepaper.strategies.types.market import (
    CloseStart as CloseStart,
)
from tracepaper.strategies.types.market import (
    Command as Command,
)
from tracepaper.strategies.types.market import (
    CommandKind as CommandKind,
)
from tracepaper.strategies.types.market import (
    CommandOrigin as CommandOrigin,
)
from tracepaper.strategies.types.market import (
    CorporateAction as CorporateAction,
)
from tracepaper.strategies.types.market import (
    CorporateActionKind as CorporateActionKind,
)
from tracepaper.strategies.types.market import (
    CovariateRow as CovariateRow,
)
from tracepaper.strategies.types.market import (
    CovariatesRead as CovariatesRead,
)
from tracepaper.strategies.types.market import (
    Depth as Depth,
)
from tracepaper.strategies.types.market import (
    Depths as Depths,
)
from tracepaper.strategies.types.market import (
    Event as Event,
)
from tracepaper.strategies.types.market import (
    FrameBar as FrameBar,
)
from tracepaper.strategies.types.market import (
    Funding as Funding,
)
from tracepaper.strategies.types.market import (
    Gap as Gap,
)
from tracepaper.strategies.types.market import (
    GapCause as GapCause,
)
from tracepaper.strategies.types.market import (
    Instrument as Instrument,
)
from tracepaper.strategies.types.market import (
    InstrumentChange as InstrumentChange,
)
from tracepaper.strategies.types.market import (
    Mark as Mark,
)
from tracepaper.strategies.types.market import (
    ModelChange as ModelChange,
)
from tracepaper.strategies.types.market import (
    ParityCheck as ParityCheck,
)
from tracepaper.strategies.types.market import (
    ParityOutcome as ParityOutcome,
)
from tracepaper.strategies.types.market import (
    Prune as Prune,
)
from tracepaper.strategies.types.market import (
    Quote as Quote,
)
from tracepaper.strategies.types.market import (
    RetrainingEnd as RetrainingEnd,
)
from tracepaper.strategies.types.market import (
    RetrainOutcome as RetrainOutcome,
)
from tracepaper.strategies.types.market import (
    RiskTier as RiskTier,
)
from tracepaper.strategies.types.market import (
    RunEnd as RunEnd,
)
from tracepaper.strategies.types.market import (
    RunKind as RunKind,
)
from tracepaper.strategies.types.market import (
    Side as Side,
)
from tracepaper.strategies.types.market import (
    Source as Source,
)
from tracepaper.strategies.types.market import (
    Trade as Trade,
)
