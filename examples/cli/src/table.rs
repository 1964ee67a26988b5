use std::fmt::{self, Write as _};

use anstyle::{AnsiColor, Style};

pub(crate) const HEADING: Style = Style::new().bold();
pub(crate) const GOOD: Style = Style::new().fg_color(Some(anstyle::Color::Ansi(AnsiColor::Green)));
pub(crate) const BAD: Style = Style::new().fg_color(Some(anstyle::Color::Ansi(AnsiColor::Red)));
pub(crate) const WARNING: Style =
    Style::new().fg_color(Some(anstyle::Color::Ansi(AnsiColor::Yellow)));

/// Aligned columns under a heading.
#[derive(Debug, Default)]
pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

#[derive(Debug)]
struct Column {
    heading: &'static str,
    side: Side,
}

#[derive(Debug, Clone, Copy)]
enum Side {
    Left,
    Right,
}

/// A cell, perhaps coloured.
#[derive(Debug)]
pub(crate) struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    pub(crate) fn new(value: impl fmt::Display) -> Self {
        Self { text: printable(&value.to_string()), style: Style::new() }
    }

    /// The value, or a dash.
    pub(crate) fn optional(value: Option<impl fmt::Display>) -> Self {
        value.map_or_else(|| Self::new("-"), Self::new)
    }

    pub(crate) fn styled(mut self, style: Style) -> Self {
        self.style = style;
        self
    }

    fn width(&self) -> usize {
        self.text.chars().count()
    }
}

impl Table {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// A column of text.
    pub(crate) fn text(mut self, heading: &'static str) -> Self {
        self.columns.push(Column { heading, side: Side::Left });
        self
    }

    /// A column of numbers.
    pub(crate) fn number(mut self, heading: &'static str) -> Self {
        self.columns.push(Column { heading, side: Side::Right });
        self
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headings: Vec<Cell> =
            self.columns.iter().map(|column| Cell::new(column.heading).styled(HEADING)).collect();
        let all = || std::iter::once(&headings).chain(&self.rows);
        let width = |index: usize| {
            all().filter_map(|row| row.get(index)).map(Cell::width).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        for row in all() {
            let mut line = String::new();
            for ((cell, column), width) in row.iter().zip(&self.columns).zip(&widths) {
                if !line.is_empty() {
                    line.push_str("  ");
                }
                let padding = " ".repeat(width - cell.width());
                let style = cell.style;
                match column.side {
                    Side::Left => write!(line, "{style}{}{style:#}{padding}", cell.text)?,
                    Side::Right => write!(line, "{padding}{style}{}{style:#}", cell.text)?,
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// What comes from outside (names of pods, say) moves no cursor.
pub(crate) fn printable(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(table: &Table) -> String {
        anstream::adapter::strip_str(&table.to_string()).to_string()
    }

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new().text("NAME").number("COUNT").text("NOTE");
        table.row([Cell::new("a"), Cell::new(5), Cell::optional(None::<u8>)]);
        table.row([Cell::new("longer"), Cell::new(12_345), Cell::new("x")]);
        let expected = "NAME    COUNT  NOTE\na           5  -\nlonger  12345  x\n";
        assert_eq!(plain(&table), expected);
    }

    #[test]
    fn colours_take_no_room() {
        let mut table = Table::new().text("STATE").text("NAME");
        table.row([Cell::new("ok").styled(GOOD), Cell::new("a")]);
        table.row([Cell::new("failed").styled(BAD), Cell::new("b")]);
        assert_eq!(plain(&table), "STATE   NAME\nok      a\nfailed  b\n");
        assert!(table.to_string().contains("\u{1b}["));
    }

    #[test]
    fn escapes_from_outside_are_harmless() {
        let mut table = Table::new().text("NAME");
        table.row([Cell::new("a\u{1b}[2Jb\n")]);
        assert_eq!(plain(&table), "NAME\na\u{fffd}[2Jb\u{fffd}\n");
    }
}
