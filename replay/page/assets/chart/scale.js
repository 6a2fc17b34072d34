/** Conversion of cells and prices to pixels of the canvas. */

/** Horizontal positions of cells, computed from a whole cell because the library misplaces fractions. */
export class Across {
  constructor(timeScale) {
    const range = timeScale.getVisibleLogicalRange();
    this.from = range ? range.from : 0;
    this.to = range ? range.to : 0;
    this.spacing = timeScale.options().barSpacing;
    this.base = Math.round(this.to);
    this.origin = timeScale.logicalToCoordinate(this.base) ?? 0;
  }

  /** The x of a cell's middle; `index` may be fractional. */
  x(index) {
    return this.origin + (index - this.base) * this.spacing;
  }

  /** The x of the left edge at a fractional position in cells. */
  edge(position) {
    return this.x(position - 0.5);
  }

  /** The first and the last cell in view, within `length`. */
  span(length) {
    return [Math.max(0, Math.floor(this.from)), Math.min(length - 1, Math.ceil(this.to))];
  }
}

/** A primitive that calls `draw(context, size)` in CSS pixels, below or above the series. */
export class Layer {
  #requestUpdate = () => {};
  #views;

  constructor(draw, { zOrder = "top", range = null } = {}) {
    const renderer = {
      draw: (target) =>
        target.useMediaCoordinateSpace(({ context, mediaSize }) => {
          context.save();
          draw(context, mediaSize);
          context.restore();
        }),
    };
    this.#views = [{ zOrder: () => zOrder, renderer: () => renderer }];
    if (range) this.autoscaleInfo = range;
  }

  attached({ requestUpdate }) {
    this.#requestUpdate = requestUpdate;
  }

  paneViews() {
    return this.#views;
  }

  update() {
    this.#requestUpdate();
  }
}
