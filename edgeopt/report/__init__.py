"""The report: data to HTML, Markdown and JUnit."""
