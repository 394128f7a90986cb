// Texts whose contrast with their ground is below WCAG AA (4.5, or 3 for large text): [ratio TAG text].
(() => {
  const parse = (text) => (text.match(/[\d.]+/g) || []).map(Number);
  const over = (top, ground) => {
    const share = top.length > 3 ? top[3] : 1;
    return [0, 1, 2].map((i) => share * top[i] + (1 - share) * ground[i]);
  };
  const light = (colour) => {
    const [r, g, b] = colour.map((v) => (v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) layers.push(colour);
      if (colour.length === 3) break;
    }
    return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255]);
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    const isCode = ["SCRIPT", "STYLE", "TITLE", "NOSCRIPT"].includes(element.tagName);
    if (!own || isCode || !element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    if (style.visibility === "hidden" || element.closest(".heard, .skip, title")) continue;
    const isDrawn = element.namespaceURI.endsWith("svg");
    const back = ground(isDrawn ? element.closest(".plot, td, th") || document.body : element);
    const front = over(parse(isDrawn ? style.fill : style.color), back);
    const [a, b] = [light(front), light(back)].sort((x, y) => y - x);
    const size = parseFloat(style.fontSize);
    const isLarge = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 600);
    const ratio = (a + 0.05) / (b + 0.05);
    const text = element.textContent.trim().slice(0, 30);
    if (ratio < (isLarge ? 3 : 4.5)) found.push(`${ratio.toFixed(2)} ${element.tagName} ${text}`);
  }
  return [...new Set(found)];
})()
