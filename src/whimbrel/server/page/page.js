"use strict";

// The page of the API, from /openapi.json. Text goes in as text, never as markup.

const METHODS = ["get", "post", "patch", "put", "delete"];
let schema = null;
let key = "";

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

function headers(more = {}) {
  return key ? { ...more, Authorization: `Bearer ${key}` } : more;
}

function resolved(node) {
  if (!node || !node.$ref) return node || {};
  return node.$ref.split("/").slice(1).reduce((at, part) => at[part], schema);
}

function kindOf(node) {
  if (node.$ref) return node.$ref.split("/").pop();
  if (node.anyOf) return node.anyOf.map(kindOf).join(" or ");
  if (node.enum) return node.enum.map((one) => JSON.stringify(one)).join(", ");
  if (node.type === "array") return `list of ${kindOf(node.items || {})}`;
  if (node.const !== undefined) return JSON.stringify(node.const);
  return node.format ? `${node.type} (${node.format})` : node.type || "any";
}

function exampleOf(node) {
  const found = resolved(node);
  if (found.examples) return found.examples[0];
  if (found.default !== undefined) return found.default;
  return undefined;
}

function shown(value) {
  return typeof value === "string" ? value : JSON.stringify(value, null, 2);
}

function rows(entries) {
  const body = element("tbody");
  for (const [name, kind, said] of entries) {
    body.append(element("tr", {}, element("td", {}, element("code", {}, name)), element("td", {}, kind),
      element("td", {}, said || "")));
  }
  const names = ["name", "takes", "meaning"].map((name) => element("th", { scope: "col" }, name));
  return element("table", {}, element("thead", {}, element("tr", {}, ...names)), body);
}

function fields(node) {
  const found = resolved(node);
  const required = new Set(found.required || []);
  return Object.entries(found.properties || {}).map(([name, one]) =>
    [required.has(name) ? `${name} *` : name, kindOf(one), one.description]);
}

function inputFor(parameter) {
  const about = parameter.schema || {};
  const first = (about.examples || (parameter.example !== undefined ? [parameter.example] : []))[0];
  const known = parameter.required ? first : undefined;
  return element("input", { name: parameter.name, "data-in": parameter.in, value: known, required: parameter.required,
    placeholder: about.default !== undefined ? String(about.default) : "" });
}

function form(path, method, operation) {
  const made = element("form");
  for (const parameter of operation.parameters || []) {
    made.append(element("label", {}, `${parameter.name} `, inputFor(parameter)));
  }
  const content = (operation.requestBody || {}).content || {};
  const json = content["application/json"];
  const upload = content["multipart/form-data"];
  if (json) {
    const text = element("textarea", { name: "(body)", spellcheck: "false", "aria-label": "JSON body" });
    text.value = shown(exampleOf(json.schema) ?? {});
    made.append(element("label", {}, "body", text));
  }
  if (upload) made.append(element("label", {}, "or files", element("input", { type: "file", name: "(files)", multiple: true })));
  const answer = element("pre", { hidden: true, "aria-live": "polite" });
  made.append(element("button", {}, "Send"), answer);
  made.addEventListener("submit", (event) => {
    event.preventDefault();
    send(made, path, method, Boolean(json), answer);
  });
  return made;
}

async function send(made, path, method, takesJson, answer) {
  const query = new URLSearchParams();
  const given = {};
  let address = path;
  for (const input of made.querySelectorAll("[data-in]")) {
    if (input.dataset.in === "path") address = address.replace(`{${input.name}}`, encodeURIComponent(input.value));
    else if (input.value && input.dataset.in === "query") query.append(input.name, input.value);
    else if (input.value) given[input.name] = input.value;
  }
  const options = { method: method.toUpperCase(), headers: headers(given) };
  const files = made.querySelector('[name="(files)"]');
  if (files && files.files.length) {
    options.body = new FormData();
    for (const file of files.files) options.body.append("file", file);
  } else if (takesJson) {
    options.headers["Content-Type"] = "application/json";
    options.body = made.querySelector("textarea").value;
  }
  answer.hidden = false;
  answer.textContent = "...";
  try {
    await show(await fetch(query.size ? `${address}?${query}` : address, options), answer);
  } catch (error) {
    answer.textContent = String(error);
  }
}

async function show(response, answer) {
  answer.textContent = `${response.status} ${response.statusText}\n\n`;
  const kind = response.headers.get("content-type") || "";
  if (kind.includes("json")) {
    answer.textContent += shown(await response.json());
    return;
  }
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) answer.textContent += part.value;
}

function answers(operation) {
  const made = element("div");
  for (const [status, response] of Object.entries(operation.responses)) {
    for (const [kind, content] of Object.entries(response.content || {})) {
      made.append(element("h4", {}, `${status} ${response.description}`), element("p", {}, element("code", {}, kind)));
      const example = content.example ?? exampleOf(content.schema);
      if (example !== undefined) made.append(element("pre", {}, shown(example)));
    }
  }
  return made;
}

function operationOf(path, method, operation) {
  const made = element("details", { id: operation.operationId });
  made.append(element("summary", {}, element("span", { class: "method" }, method.toUpperCase()),
    element("code", {}, path), element("span", { class: "said" }, operation.summary || "")));
  const inside = element("div");
  inside.append(element("p", {}, operation.description || ""));
  const parameters = (operation.parameters || []).map((one) =>
    [one.required ? `${one.name} *` : one.name, `${kindOf(one.schema || {})}, in ${one.in}`, one.description]);
  if (parameters.length) inside.append(element("h4", {}, "Parameters"), rows(parameters));
  for (const [kind, content] of Object.entries((operation.requestBody || {}).content || {})) {
    inside.append(element("h4", {}, `Body: ${kind}`), rows(fields(content.schema)));
  }
  inside.append(element("h3", {}, "Try it"), form(path, method, operation));
  inside.append(element("h3", {}, "Answers"), answers(operation));
  made.append(inside);
  return made;
}

function render() {
  document.getElementById("version").textContent = schema.info.version;
  document.getElementById("about").textContent = schema.info.description;
  const main = document.getElementById("operations");
  const list = element("ul");
  main.replaceChildren();
  const sections = new Map();
  for (const [path, methods] of Object.entries(schema.paths)) {
    for (const method of METHODS.filter((one) => methods[one])) {
      const operation = methods[method];
      const tag = (operation.tags || ["other"])[0];
      if (!sections.has(tag)) sections.set(tag, element("section", {}, element("h2", {}, tag)));
      sections.get(tag).append(operationOf(path, method, operation));
      list.append(element("li", {}, element("a", { href: `#${operation.operationId}` }, `${method.toUpperCase()} ${path}`)));
    }
  }
  main.append(...sections.values(), schemas(), errors());
  document.getElementById("contents").replaceChildren(list);
  open(location.hash.slice(1));
}

function schemas() {
  const made = element("section", {}, element("h2", {}, "Schemas"));
  for (const [name, one] of Object.entries(schema.components.schemas)) {
    const inside = element("div", {}, element("p", {}, one.description || ""), rows(fields(one)));
    if (one.examples) inside.append(element("pre", {}, shown(one.examples[0])));
    made.append(element("details", { id: `schema-${name}` }, element("summary", {}, element("code", {}, name)), inside));
  }
  return made;
}

function errors() {
  const made = element("section", {}, element("h2", {}, "Errors"));
  for (const one of schema["x-errors"] || []) {
    made.append(element("details", { id: one.error }, element("summary", {}, element("span", { class: "method" }, String(one.status)),
      element("code", {}, one.error)), element("div", {}, element("p", {}, one.description || one.title))));
  }
  return made;
}

function open(id) {
  const found = id && document.getElementById(id);
  if (!found) return;
  found.open = true;
  found.scrollIntoView();
}

async function load() {
  const trouble = document.getElementById("trouble");
  try {
    const response = await fetch("/openapi.json", { headers: headers() });
    const body = await response.json();
    if (!response.ok) throw new Error(`${body.message || response.statusText} ${body.hint || ""}`);
    schema = body;
    trouble.hidden = true;
    render();
  } catch (error) {
    trouble.hidden = false;
    trouble.textContent = error.message;
  }
}

document.getElementById("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = document.getElementById("key").value.trim();
  load();
});
window.addEventListener("hashchange", () => open(location.hash.slice(1)));
load();
