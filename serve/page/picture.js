// A picture on its way to the server: read upright, scaled down where it is large, encoded once.

import { Problem } from "./answers.js";

const MOST_SIDE = 2000;
const MOST_BYTES = 12_000_000;
// Sent as they are, so that the server sees every pixel; others are drawn and encoded anew.
const AS_IT_IS = ["image/jpeg", "image/png", "image/webp"];

/** The first picture of what was dropped or pasted; else its first file, which then says what is wrong with it. */
export function fileOf(data) {
  const files = [...(data?.files ?? [])];
  return files.find(({ type }) => type.startsWith("image/")) ?? files[0];
}

/**
 * A picture as the page keeps it: `name`, `url`, `width` and `height` of the upright original, `bitmap` (the same,
 * scaled down), `sent` (the size that the server sees) and `encoded()` (a data URL).
 */
export async function readPicture(file) {
  const name = file.name || "picture";
  if (file.type && !file.type.startsWith("image/")) {
    throw new Problem(`${name} is not a picture (${file.type}). JPEG, PNG and WebP work.`);
  }
  let whole;
  try {
    whole = await createImageBitmap(file);
  } catch {
    const heic = /hei[cf]/i.test(file.type) || /\.hei[cf]$/i.test(name);
    throw new Problem(
      heic
        ? `${name} is in Apple's HEIC format, which this browser cannot read. Save it as JPEG and try again.`
        : `${name} cannot be read as a picture. It may be damaged, or not a picture at all: JPEG, PNG and WebP work.`,
    );
  }
  const { width, height } = whole;
  const scale = Math.min(1, MOST_SIDE / Math.max(width, height));
  const sent = { width: Math.max(1, Math.round(width * scale)), height: Math.max(1, Math.round(height * scale)) };
  let [bitmap, blob] = [whole, file];
  if (scale < 1 || !AS_IT_IS.includes(file.type) || file.size > MOST_BYTES) {
    bitmap = new OffscreenCanvas(sent.width, sent.height);
    const pen = bitmap.getContext("2d");
    pen.fillStyle = "#fff";
    pen.fillRect(0, 0, sent.width, sent.height);
    pen.imageSmoothingQuality = "high";
    pen.drawImage(whole, 0, 0, sent.width, sent.height);
    whole.close();
    const lossless = scale === 1 && file.size <= MOST_BYTES;
    blob = await bitmap.convertToBlob(lossless ? { type: "image/png" } : { type: "image/jpeg", quality: 0.92 });
  }
  let encoding;
  const encoded = () => (encoding ??= dataUrl(blob));
  return { name, url: URL.createObjectURL(file), width, height, bitmap, sent, encoded };
}

function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Problem("The file can no longer be read. Choose it again."));
    reader.readAsDataURL(blob);
  });
}
