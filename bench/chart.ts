/** A chart of values over a few places on the x axis, which are evenly apart. */
export interface Chart {
  title: string;
  xTitle: string;
  yTitle: string;
  /** Names of the places. */
  places: string[];
  lines: Line[];
}

/** One line; with a single value it is drawn level across the chart. */
export interface Line {
  name: string;
  /** A value for each place, or undefined where there is none; or one value for all. */
  values: (number | undefined)[] | number;
  color: string;
  dashed?: true;
}

const WIDTH = 960;
const HEIGHT = 420;
const PLOT = { left: 72, right: 640, top: 48, bottom: 360 };

/** Draws the chart as a stand-alone SVG, on white so that it reads the same on a dark page. */
export function drawChart(chart: Chart): string {
  const top = niceTop(Math.max(...chart.lines.flatMap(({ values }) => values).map((value) => value ?? 0)));
  const x = (place: number) => PLOT.left + ((PLOT.right - PLOT.left) * (place + 0.5)) / chart.places.length;
  const y = (value: number) => PLOT.bottom - ((PLOT.bottom - PLOT.top) * value) / top;
  const parts = [
    `<rect width="${WIDTH}" height="${HEIGHT}" fill="white"/>`,
    text(PLOT.left, 26, chart.title, 'font-size="16" font-weight="600"'),
    text((PLOT.left + PLOT.right) / 2, HEIGHT - 16, chart.xTitle, 'text-anchor="middle"'),
    text(
      18,
      (PLOT.top + PLOT.bottom) / 2,
      chart.yTitle,
      `text-anchor="middle" transform="rotate(-90 18 ${(PLOT.top + PLOT.bottom) / 2})"`,
    ),
    ...[0, 1, 2, 3, 4].flatMap((step) => gridLine((top * step) / 4, y)),
    ...chart.places.map((name, place) => text(x(place), PLOT.bottom + 20, name, 'text-anchor="middle"')),
    ...chart.lines.map((line) => drawLine(line, x, y)),
    ...chart.lines.map(legendEntry),
  ];
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" font-family="sans-serif" font-size="12" fill="#222">\n${parts.join('\n')}\n</svg>\n`;
}

/** The least of 1, 2, 4, 6, 8 and 10 times a power of ten that is not below `value`: its quarters are short numbers. */
export function niceTop(value: number): number {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return ([1, 2, 4, 6, 8].find((factor) => value <= factor * power) ?? 10) * power;
}

function gridLine(value: number, y: (value: number) => number): string[] {
  const at = y(value).toFixed(1);
  return [
    `<line x1="${PLOT.left}" x2="${PLOT.right}" y1="${at}" y2="${at}" stroke="#ddd"/>`,
    text(PLOT.left - 8, Number(at) + 4, String(Number(value.toPrecision(3))), 'text-anchor="end"'),
  ];
}

function drawLine(
  { values, color, dashed }: Line,
  x: (place: number) => number,
  y: (value: number) => number,
): string {
  const stroke = `fill="none" stroke="${color}" stroke-width="2.5"${dashed ? ' stroke-dasharray="6 5"' : ''}`;
  if (typeof values === 'number') {
    const at = y(values).toFixed(1);
    return `<line x1="${PLOT.left}" x2="${PLOT.right}" y1="${at}" y2="${at}" ${stroke}/>`;
  }
  const points = values.flatMap((value, place) =>
    value === undefined ? [] : [[x(place).toFixed(1), y(value).toFixed(1)] as const],
  );
  const marks = points.map(([px, py]) => `<circle cx="${px}" cy="${py}" r="3.5" fill="${color}"/>`).join('');
  return `<polyline points="${points.map((point) => point.join(',')).join(' ')}" ${stroke}/>${marks}`;
}

function legendEntry({ name, color, dashed }: Line, index: number): string {
  const at = PLOT.top + 10 + index * 22;
  const left = PLOT.right + 20;
  const dashes = dashed ? ' stroke-dasharray="6 5"' : '';
  const sample = `<line x1="${left}" x2="${left + 26}" y1="${at - 4}" y2="${at - 4}" stroke="${color}" stroke-width="2.5"${dashes}/>`;
  return `${sample}${text(left + 34, at, name, '')}`;
}

function text(x: number, y: number, words: string, attributes: string): string {
  const escaped = words.replaceAll('&', '&amp;').replaceAll('<', '&lt;');
  return `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" ${attributes}>${escaped}</text>`;
}
