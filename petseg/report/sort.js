// A click on a column's title sorts the classes by it; the rows below them stay where they are.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.querySelectorAll("thead th")], body = table.tBodies[0];
  const value = (row, at) => {
    const text = row.cells[at].textContent.trim(), figure = parseFloat(text);
    return at ? (Number.isFinite(figure) ? figure : -1) : text.toLowerCase();
  };
  heads.forEach((head, at) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.onclick = () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...body.querySelectorAll("tr.class")];
      rows.sort((a, b) => (value(a, at) < value(b, at) ? -1 : value(a, at) > value(b, at) ? 1 : 0) * (up ? 1 : -1));
      body.prepend(...rows);
    };
  });
}
