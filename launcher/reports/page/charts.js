const charts = [...document.querySelectorAll('.chart[data-points]')].map(figure => ({
  figure, ...JSON.parse(figure.dataset.points), at: figure.querySelector('.at'),
  outputs: [...figure.querySelectorAll('.value')], plots: [...figure.querySelectorAll('.plot')].map(plot => ({
    plot, x: plot.dataset.x.split(',').map(Number), y: plot.dataset.y.split(',').map(Number),
    log: plot.classList.contains('log'), cross: plot.querySelector('.cross'), dots: plot.querySelectorAll('.dot')}))}));
const say = v => v === null ? '-' : v && Math.abs(v) < 1e-3 ? v.toExponential(3)
  : v.toLocaleString('en', Math.abs(v) < 1e4 ? {maximumSignificantDigits: 4} : {maximumFractionDigits: 0});
function read(chart, i) {
  chart.at.textContent = 'step ' + chart.steps[i].toLocaleString('en');
  chart.outputs.forEach((output, k) => { output.textContent = say(chart.values[k][i]); });
}
function show(i) {
  for (const chart of charts) {
    read(chart, i);
    for (const {x, y, log, cross, dots} of chart.plots) {
      const left = 100 * (chart.steps[i] - x[0]) / (x[1] - x[0]) + '%';
      cross.style.cssText = 'display:block;left:' + left;
      dots.forEach((dot, k) => {
        const v = chart.values[k][i], f = log ? Math.log : u => u;
        const up = 100 * (f(v) - f(y[0])) / (f(y[1]) - f(y[0]));
        dot.style.cssText = v === null || !isFinite(up) ? '' : `display:block;left:${left};bottom:${up}%`;
      });
    }
  }
}
function hide() {
  for (const chart of charts) {
    read(chart, chart.steps.length - 1);
    for (const {cross, dots} of chart.plots) for (const i of [cross, ...dots]) i.style.cssText = '';
  }
}
for (const {steps, plots} of charts) for (const {plot, x} of plots) {
  let now = steps.length - 1;
  plot.addEventListener('pointermove', event => {
    const box = plot.getBoundingClientRect(), want = x[0] + (x[1] - x[0]) * (event.clientX - box.left) / box.width;
    let low = 0, high = steps.length - 1;
    while (low < high) { const middle = (low + high) >> 1; steps[middle] < want ? low = middle + 1 : high = middle; }
    now = low > 0 && want - steps[low - 1] < steps[low] - want ? low - 1 : low;
    show(now);
  });
  plot.addEventListener('pointerleave', hide);
  plot.addEventListener('blur', hide);
  plot.addEventListener('keydown', event => {
    const by = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if (!by) return;
    event.preventDefault();
    now = Math.min(steps.length - 1, Math.max(0, now + by));
    show(now);
  });
}
