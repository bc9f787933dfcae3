/* The console's API. The tab keeps the key until it is closed. */

const KEY = "wsfleet-key";

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

async function call(path, options = {}) {
  const answer = await fetch(`api/${path}`, {
    ...options,
    headers: { "X-API-Key": key.get() ?? "", "Content-Type": "application/json" },
    signal: AbortSignal.timeout(10_000),
  });
  if (answer.ok) return answer.status === 204 ? null : answer.json();
  let detail = `HTTP ${answer.status}`;
  try {
    detail = (await answer.json()).detail ?? detail;
  } catch {
    /* not from a node: the balancer's own page */
  }
  throw new Refused(answer.status, String(detail));
}

export const look = () => call("cluster");
export const drain = (node, force) => call("drain", { method: "POST", body: JSON.stringify({ node, force }) });
export const undrain = (node) => call("undrain", { method: "POST", body: JSON.stringify({ node }) });
