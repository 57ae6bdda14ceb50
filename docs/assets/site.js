// Code that is wider than the page can be scrolled with the keyboard.
for (const code of document.querySelectorAll("pre > code")) {
  code.tabIndex = 0;
}
