// The connection: JSON up, JSON and binary down. Every request has an id that its answers repeat.

const VERSION = 1;

/** Header and files of a binary message; files are Blobs. */
function unpack(buffer) {
  const size = new DataView(buffer).getUint32(0);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, size)));
  let place = 4 + size;
  header.blobs = {};
  for (const [name, type, length] of header.files) {
    header.blobs[name] = new Blob([new Uint8Array(buffer, place, length)], { type });
    place += length;
  }
  return header;
}

export class Wire {
  /** @param handlers {message(header), state(text, isBad)} */
  constructor(token, handlers) {
    this.token = token;
    this.handlers = handlers;
    this.waiting = new Map();
    this.next = 1;
    this.tries = 0;
    this.chain = Promise.resolve();
  }

  connect() {
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(`${scheme}//${location.host}/ws`);
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    this.isOver = false;
    socket.onopen = () => {
      this.tries = 0;
      const hello = { type: "hello", protocol: VERSION };
      if (this.token) hello.token = this.token;
      const session = sessionStorage.getItem("session");
      if (session) hello.session = session;
      this.ask(hello).catch(() => {});
    };
    socket.onmessage = (event) => {
      const message = typeof event.data === "string" ? JSON.parse(event.data) : unpack(event.data);
      // One after the other: a frame is drawn before the next message is looked at.
      this.chain = this.chain.then(() => this.take(message)).catch((error) => console.error(error));
    };
    socket.onclose = () => {
      for (const { reject } of this.waiting.values()) reject(new Error("the connection is gone"));
      this.waiting.clear();
      if (this.isOver) return;
      this.handlers.state("The server does not answer; trying again.", true);
      setTimeout(() => this.connect(), Math.min(8000, 500 * 2 ** this.tries++));
    };
  }

  async take(message) {
    const { type, id } = message;
    if (type === "closed") {
      this.isOver = true;
      this.handlers.state(message.words, true);
      return;
    }
    if (type === "welcome") sessionStorage.setItem("session", message.session);
    const waiting = this.waiting.get(id);
    if (type === "error") {
      this.waiting.delete(id);
      if (waiting) waiting.reject(new Error(message.words));
      else this.handlers.state(message.words, true);
      return;
    }
    await this.handlers.message(message);
    if (waiting && waiting.until(message)) {
      this.waiting.delete(id);
      waiting.resolve(message);
    }
  }

  /** Sends a request; resolves with the first answer, or with the first that `until` takes. */
  ask(request, until = () => true) {
    if (!this.socket || this.socket.readyState !== WebSocket.OPEN) {
      return Promise.reject(new Error("the server does not answer"));
    }
    const id = this.next++;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject, until });
      this.socket.send(JSON.stringify({ ...request, id }));
    });
  }
}

export async function base64(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  let text = "";
  for (let at = 0; at < bytes.length; at += 32768) {
    text += String.fromCharCode(...bytes.subarray(at, at + 32768));
  }
  return btoa(text);
}

/** JSON as a short text for a link, and back. */
export async function squeeze(value) {
  const stream = new Blob([JSON.stringify(value)]).stream();
  const small = await new Response(stream.pipeThrough(new CompressionStream("deflate-raw"))).blob();
  return (await base64(small)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

export async function unsqueeze(text) {
  const bytes = Uint8Array.from(
    atob(text.replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  const reader = stream.getReader();
  const parts = [];
  let size = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    size += value.length;
    if (size > 3 << 20) throw new Error("the link holds too much");
    parts.push(value);
  }
  return JSON.parse(await new Blob(parts).text());
}
