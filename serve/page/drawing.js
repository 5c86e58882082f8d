// Objects over the picture: as SVG on the page and as a PNG; and as COCO.

import { areaOf, outlineOf, resized } from "./masks.js";

// Okabe and Ito's colours without black, the blue lighter: told apart with any colour vision, dark ink readable on all.
const PALETTE = ["#56b4e9", "#e69f00", "#cc79a7", "#009e73", "#f0e442", "#e2571e", "#7a7cf0"];
const INK = "#101418";

export const colourOf = (number) => PALETTE[number % PALETTE.length];

/** An SVG element. */
function svg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const extent = ({ box: [x0, y0, x1, y1] }) => (x1 - x0) * (y1 - y0);

/** Object numbers, large ones first, so that small ones lie on top. */
export const inOrder = (objects) =>
  [...objects.keys()].filter((number) => objects[number]).sort((a, b) => extent(objects[b]) - extent(objects[a]));

/** Cells of a patch grid as path data, in a frame of `width` x `height`. */
function cellsPath(patches, [rows, columns], width, height) {
  const [w, h] = [width / columns, height / rows];
  return [...new Set(patches)]
    .filter((patch) => patch < rows * columns)
    .map((patch) => `M${(patch % columns) * w} ${Math.floor(patch / columns) * h}h${w}v${h}h${-w}Z`)
    .join("");
}

/** The lines of a patch grid as an SVG path. */
export function gridShape([rows, columns], { width, height }) {
  const across = Array.from({ length: rows - 1 }, (_, row) => `M0 ${((row + 1) * height) / rows}h${width}`);
  const down = Array.from({ length: columns - 1 }, (_, column) => `M${((column + 1) * width) / columns} 0v${height}`);
  return svg("path", { class: "grid", d: [...across, ...down].join("") });
}

/**
 * An object as an SVG group: a shade over all but the object, mask, patches and box.
 * @param frame width and height of the picture that the answer is about, and the patch grid once it is known.
 */
export function objectShape(found, number, frame) {
  const [x0, y0, x1, y1] = found.box;
  const size = { x: x0, y: y0, width: Math.max(0, x1 - x0), height: Math.max(0, y1 - y0) };
  const outline = (found.outline ??= found.mask && outlineOf(found.mask));
  const group = svg("g", { class: "object", "data-objects": number });
  group.style.setProperty("--colour", colourOf(number));
  if (outline) {
    const around = `M0 0H${outline.width}V${outline.height}H0Z`;
    const transform = `scale(${frame.width / outline.width} ${frame.height / outline.height})`;
    const part = (name, d) => svg("path", { class: name, d, transform, "fill-rule": "evenodd" });
    group.append(part("shade", around + outline.path), part("mask halo", outline.path), part("mask", outline.path));
  } else {
    const hole = `M0 0H${frame.width}V${frame.height}H0ZM${x0} ${y0}H${x1}V${y1}H${x0}Z`;
    group.append(svg("path", { class: "shade", d: hole, "fill-rule": "evenodd" }));
  }
  if (frame.grid) {
    group.append(svg("path", { class: "cells", d: cellsPath(found.patches, frame.grid, frame.width, frame.height) }));
  }
  group.append(svg("rect", { class: "box halo", ...size }), svg("rect", { class: "box", ...size }));
  return group;
}

/** Draw a square piece of the picture around an object into a canvas. */
export function drawPiece(canvas, picture, found, frame) {
  const [x0, y0, x1, y1] = found.box;
  const scale = picture.bitmap.width / frame.width;
  const side = Math.max(8, Math.max(x1 - x0, y1 - y0) * 1.1) * scale;
  const [left, top] = [((x0 + x1) * scale - side) / 2, ((y0 + y1) * scale - side) / 2];
  const pen = canvas.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.drawImage(picture.bitmap, left, top, side, side, 0, 0, canvas.width, canvas.height);
}

/**
 * The picture with its objects, as a PNG file.
 * @param numbers which objects; `layers` holds the names of what is drawn: boxes, masks, patches.
 */
export function toPng(picture, objects, numbers, frame, layers) {
  const longest = Math.max(picture.width, picture.height);
  const scale = Math.min(2400, Math.max(1120, longest)) / longest;
  const canvas = new OffscreenCanvas(Math.round(picture.width * scale), Math.round(picture.height * scale));
  const { width, height } = canvas;
  const pen = canvas.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.drawImage(picture.bitmap, 0, 0, width, height);
  const line = Math.max(width, height) / 420;
  const stroke = (path) => {
    pen.strokeStyle = "#0008";
    pen.lineWidth = 2 * line;
    pen.stroke(path);
    pen.strokeStyle = pen.fillStyle;
    pen.lineWidth = line;
    pen.stroke(path);
  };
  const scaled = (d, from) => {
    const path = new Path2D();
    path.addPath(new Path2D(d), new DOMMatrix().scale(width / from.width, height / from.height));
    return path;
  };
  const fill = (path, share) => {
    pen.globalAlpha = share;
    pen.fill(path, "evenodd");
    pen.globalAlpha = 1;
  };
  const shown = inOrder(objects).filter((number) => numbers.includes(number));
  for (const number of shown) {
    const found = objects[number];
    pen.fillStyle = colourOf(number);
    if (layers.has("masks") && found.outline) {
      const path = scaled(found.outline.path, found.outline);
      fill(path, 0.38);
      stroke(path);
    }
    if (layers.has("patches") && frame.grid) {
      const path = scaled(cellsPath(found.patches, frame.grid, frame.width, frame.height), frame);
      fill(path, 0.3);
      pen.strokeStyle = "#fffa";
      pen.lineWidth = line / 2;
      pen.stroke(path);
    }
    if (layers.has("boxes")) {
      const [x0, y0, x1, y1] = found.box;
      stroke(scaled(`M${x0} ${y0}H${x1}V${y1}H${x0}Z`, frame));
    }
  }
  pen.font = `600 ${Math.round(9 * line)}px Inter, system-ui, sans-serif`;
  pen.textBaseline = "middle";
  for (const number of shown) {
    const { label, score, box } = objects[number];
    const words = `${label} ${score.toFixed(2)}`;
    const [wide, high] = [pen.measureText(words).width + 8 * line, 14 * line];
    const left = Math.max(0, Math.min((box[0] * width) / frame.width, width - wide));
    const top = Math.max(0, (box[1] * height) / frame.height - high - line);
    pen.fillStyle = colourOf(number);
    pen.beginPath();
    pen.roundRect(left, top, wide, high, 4 * line);
    pen.fill();
    pen.fillStyle = INK;
    pen.fillText(words, left + 4 * line, top + high / 2);
  }
  return canvas.convertToBlob({ type: "image/png" });
}

/** A box of the answer's frame in pixels of the original picture. */
export function originalBox(box, picture, frame) {
  const scales = [picture.width / frame.width, picture.height / frame.height];
  return box.map((value, place) => value * scales[place % 2]);
}

/** Objects as a COCO data set of one picture, in pixels of the original. */
export function toCoco(picture, objects, frame) {
  const names = [...new Set(objects.map(({ label }) => label))];
  const annotations = objects.map(({ label, score, box, mask }, place) => {
    const [x0, y0, x1, y1] = originalBox(box, picture, frame).map((value) => Math.round(value * 100) / 100);
    const segmentation = mask && resized(mask, picture.width, picture.height);
    const area = segmentation ? areaOf(segmentation) : (x1 - x0) * (y1 - y0);
    const about = { id: place + 1, image_id: 1, category_id: names.indexOf(label) + 1, score, iscrowd: 0, area };
    return { ...about, bbox: [x0, y0, x1 - x0, y1 - y0], ...(segmentation && { segmentation }) };
  });
  return {
    images: [{ id: 1, file_name: picture.name, width: picture.width, height: picture.height }],
    annotations,
    categories: names.map((name, place) => ({ id: place + 1, name })),
  };
}
