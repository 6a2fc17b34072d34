/** The forecast drawn forward: 50 % and 90 % of what the model said, its mean, and what came. */

const BANDS = [
  { low: 0.05, high: 0.95, z: 1.645, opacity: 0.11 },
  { low: 0.25, high: 0.75, z: 0.674, opacity: 0.16 },
];

/** The log return at a level of a forecast, or null. */
function atLevel(forecast, level, z) {
  const stated = forecast.quantiles.find(([each]) => Math.abs(each - level) < 1e-6);
  if (stated) return stated[1];
  return forecast.stdev_return == null ? null : forecast.mean_return + (level < 0.5 ? -z : z) * forecast.stdev_return;
}

/** Lowest and highest price of a decision's fan, or null. */
export function fanRange(decision) {
  if (!decision?.forecast) return null;
  const [{ low, high, z }] = BANDS;
  const down = atLevel(decision.forecast, low, z);
  const up = atLevel(decision.forecast, high, z);
  return down == null ? null : [decision.close * Math.exp(down), decision.close * Math.exp(up)];
}

/** Whether what came lies inside the inner or outer band: `inside 50 %`. */
export function cameInside(forecast) {
  for (const band of [BANDS[1], BANDS[0]]) {
    const down = atLevel(forecast, band.low, band.z);
    const up = atLevel(forecast, band.high, band.z);
    if (down == null) return "";
    if (forecast.came >= down && forecast.came <= up) return `inside ${Math.round((band.high - band.low) * 100)} %`;
  }
  return "outside 90 %";
}

export function drawFan(context, { decision, index, bars, across, y, colours }) {
  const { forecast, close } = decision;
  if (!forecast || index < 0) return;
  const steps = 24;
  const price = (value, share) => y(close * Math.exp(forecast.mean_return * share + (value - forecast.mean_return) * Math.sqrt(share)));
  context.fillStyle = colours.accent;
  context.strokeStyle = colours.accent;
  for (const band of BANDS) {
    const down = atLevel(forecast, band.low, band.z);
    const up = atLevel(forecast, band.high, band.z);
    if (down == null) continue;
    context.globalAlpha = band.opacity;
    context.beginPath();
    for (let step = 0; step <= steps; step++) context.lineTo(across.x(index + (bars * step) / steps), price(up, step / steps));
    for (let step = steps; step >= 0; step--) context.lineTo(across.x(index + (bars * step) / steps), price(down, step / steps));
    context.fill();
  }
  context.globalAlpha = 1;
  context.setLineDash([4, 3]);
  context.lineWidth = 1.25;
  context.beginPath();
  context.moveTo(across.x(index), y(close));
  context.lineTo(across.x(index + bars), y(close * Math.exp(forecast.mean_return)));
  context.stroke();
  context.setLineDash([]);
  context.beginPath();
  context.arc(across.x(index), y(close), 2.5, 0, 2 * Math.PI);
  context.fill();
  if (forecast.came == null) return;
  context.beginPath();
  context.arc(across.x(index + bars), y(close * Math.exp(forecast.came)), 4, 0, 2 * Math.PI);
  context.fillStyle = colours.paper;
  context.fill();
  context.lineWidth = 1.5;
  context.stroke();
}
