// Where an answer came from, and the question whether a cloud may be asked: what a router tells in the field `edgelm`.

const PLACES = {local: "This device", cloud: "The cloud"};
const KINDS = { // of personal data, one and several; others are shown as the server names them
  ACCOUNT: ["account number", "account numbers"],
  API_KEY: ["API key", "API keys"],
  BIRTH_DATE: ["date of birth", "dates of birth"],
  CARD: ["card number", "card numbers"],
  EMAIL: ["e-mail address", "e-mail addresses"],
  IBAN: ["IBAN", "IBANs"],
  IP_ADDRESS: ["IP address", "IP addresses"],
  LICENCE: ["licence number", "licence numbers"],
  LOCATION: ["place", "places"],
  MAC_ADDRESS: ["MAC address", "MAC addresses"],
  NAME: ["name", "names"],
  ORGANIZATION: ["organization", "organizations"],
  PASSPORT: ["passport number", "passport numbers"],
  PASSWORD: ["password", "passwords"],
  PERSON: ["person's name", "persons' names"],
  PHONE: ["phone number", "phone numbers"],
  PRIVATE_KEY: ["private key", "private keys"],
  SECRET: ["secret", "secrets"],
  TOKEN: ["access token", "access tokens"],
};

/** Shows who answers, and why; what else is known is folded. */
export function showRoute(section, told) {
  section.dataset.route = told.route;
  section.querySelector("use").setAttribute("href", `#${told.route}-icon`);
  section.querySelector(".place").textContent = PLACES[told.route];
  section.querySelector(".why").textContent = told.fault && told.fault === told.why ? `asking the cloud failed: ${told.fault}` : told.why;
  const known = facts(told);
  section.querySelector("dl").replaceChildren(...known.flatMap(([name, value]) => [text("dt", name), text("dd", value)]));
  section.querySelector("details").hidden = !known.length;
  section.hidden = false;
}

/** What is said when the text so far is taken back. */
export function takenBack(before, told) {
  const by = before === told.route ? "another" : `${PLACES[told.route].toLowerCase()}'s`;
  return `${PLACES[before]}'s text was replaced by ${by}.`;
}

/** What a person is asked before anything leaves. */
export function consentText({endpoint, model, n_bytes: n, entities}) {
  return `Send ${counted(n, "byte", "bytes")} to ${model} at ${endpoint}? ${kinds(entities) || "Nothing in it"} would be replaced.`;
}

function facts(told) {
  const {input, output} = told.cloud_tokens;
  const cost = Number(told.cost);
  const tokens = [
    told.local_tokens > 0 && `${counted(told.local_tokens, "token", "tokens")} of this device`,
    input + output > 0 && `${number(input)} read and ${number(output)} written by the cloud`,
  ].filter(Boolean);
  return [
    told.confidence !== null && ["Confidence", `${percent(told.confidence)} that this device's answer is right`],
    told.agreement !== null && ["Agreement", `${percent(told.agreement)} of ${told.samples + 1} answers of this device`],
    !told.consent && kinds(told.redacted) && ["Privacy", `${kinds(told.redacted)} replaced before the cloud was asked`],
    tokens.length && ["Tokens", tokens.join(", ")],
    cost > 0 && ["Cost", `${number(cost)} ${told.currency}`],
    told.fault && told.fault !== told.why && ["The cloud failed", told.fault],
  ].filter(Boolean);
}

function kinds(entities) {
  return Object.entries(entities).map(([kind, n]) => counted(n, ...(KINDS[kind] ?? [kind, kind]))).join(", ");
}

const counted = (n, one, several) => `${number(n)} ${n === 1 ? one : several}`;
const number = (n) => n.toLocaleString("en", {maximumFractionDigits: 6});
const percent = (part) => `${Math.round(part * 100)}%`;

function text(tag, content) {
  const element = document.createElement(tag);
  element.textContent = content;
  return element;
}
