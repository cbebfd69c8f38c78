const calm = matchMedia('(prefers-reduced-motion: reduce)').matches;
for (const video of document.querySelectorAll('video')) {
  if (calm) { video.removeAttribute('autoplay'); video.pause(); }
  video.addEventListener('click', () => video.paused ? video.play() : video.pause());
}
