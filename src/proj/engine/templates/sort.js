// Sort a table by the column whose heading is clicked: numbers by size, texts by the alphabet.
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  if (body.rows.length < 3) continue;
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.append(...heading.childNodes);
    heading.append(button);
    const text = (row) => row.cells[column].innerText.trim();
    const size = (row) => parseFloat(text(row).replaceAll(",", ""));
    button.addEventListener("click", () => {
      const opposite = { ascending: "descending", descending: "ascending" };
      const first = heading.classList.contains("number") ? "descending" : "ascending";
      const direction = opposite[heading.ariaSort] ?? first;
      for (const other of headings) other.ariaSort = null;
      heading.ariaSort = direction;
      const compare = (a, b) => {
        const [x, y] = [size(a), size(b)];
        // Cells without a number come last.
        if (isNaN(x) !== isNaN(y)) return isNaN(x) ? 1 : -1;
        const difference = x - y || text(a).localeCompare(text(b), undefined, { numeric: true });
        return direction === "ascending" ? difference : -difference;
      };
      body.append(...[...body.rows].sort(compare));
    });
  });
}
