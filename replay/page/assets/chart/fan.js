/** The forecast as a fan: its 50 % and 90 % intervals, its mean, and the realised return. */

const BANDS = [
  { z: 1.645, opacity: 0.11 },
  { z: 0.674, opacity: 0.16 },
];

/** The log returns `z` standard deviations below and above the mean, or nulls. */
const between = ({ mean_return: mean, stdev_return: stdev }, z) => (stdev == null ? [null, null] : [mean - z * stdev, mean + z * stdev]);

/** Lowest and highest price of a decision's fan, or null. */
export function fanRange(decision) {
  if (!decision?.forecast) return null;
  const [down, up] = between(decision.forecast, BANDS[0].z);
  return down == null ? null : [decision.close * Math.exp(down), decision.close * Math.exp(up)];
}

export function drawFan(context, { decision, index, bars, across, y, colours }) {
  const { forecast, close } = decision;
  if (!forecast || index < 0) return;
  const steps = 24;
  const price = (value, share) => y(close * Math.exp(forecast.mean_return * share + (value - forecast.mean_return) * Math.sqrt(share)));
  context.fillStyle = colours.accent;
  context.strokeStyle = colours.accent;
  for (const band of BANDS) {
    const [down, up] = between(forecast, band.z);
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
  if (forecast.realised == null) return;
  context.beginPath();
  context.arc(across.x(index + bars), y(close * Math.exp(forecast.realised)), 4, 0, 2 * Math.PI);
  context.fillStyle = colours.paper;
  context.fill();
  context.lineWidth = 1.5;
  context.stroke();
}
