//! Tables that fit the page: the least important columns are cut first, then left out.

use comfy_table::{Cell, CellAlignment, Color, ColumnConstraint, Row, Width};

use super::Page;

/// Between two columns.
const GAP: u16 = 2;

/// A column of a table.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Its heading.
    pub head: &'static str,
    /// The higher, the longer it is kept.
    pub weight: u8,
    /// It is cut to this width at most; when that is still too much, it is left out.
    pub least: u16,
    /// Aligned to the right: numbers.
    pub right: bool,
}

/// A text and its colour.
#[derive(Clone, Debug)]
pub struct Content {
    text: String,
    colour: Option<Color>,
}

/// A cell without colour.
pub fn cell(text: String) -> Content {
    Content { text, colour: None }
}

impl Content {
    /// The cell in a colour.
    pub fn colour(self, colour: Option<Color>) -> Content {
        Content { colour, ..self }
    }
}

/// A table to be rendered. Columns without any content are left out.
#[derive(Debug)]
pub struct Table {
    columns: &'static [Column],
    rows: Vec<Vec<Content>>,
}

impl Table {
    /// An empty table.
    pub fn new(columns: &'static [Column]) -> Table {
        Table { columns, rows: Vec::new() }
    }

    /// Adds a row with a cell for each column.
    pub fn row(&mut self, row: Vec<Content>) {
        debug_assert_eq!(row.len(), self.columns.len());
        self.rows.push(row);
    }

    /// The table as text, without trailing blanks, each line ended.
    pub fn render(&self, page: &Page) -> String {
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        // Cut anywhere, not only between words: "no such file o…" says more than "no…".
        table.set_delimiter('\0');
        if page.colour {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        table.set_header(self.columns.iter().map(|c| c.head));
        for row in &self.rows {
            let mut cells = Row::from(row.iter().map(rendered));
            cells.max_height(1);
            table.add_row(cells);
        }
        let mut natural = table.column_max_content_widths();
        for (at, width) in natural.iter_mut().enumerate() {
            if self.rows.iter().all(|row| row.get(at).is_none_or(|c| c.text.is_empty())) {
                *width = 0;
            }
        }
        let fitted = fit(self.columns, &natural, page.width);
        for (at, width) in fitted.into_iter().enumerate() {
            let Some(column) = table.column_mut(at) else { continue };
            column.set_padding((0, GAP));
            if self.columns[at].right {
                column.set_cell_alignment(CellAlignment::Right);
            }
            column.set_constraint(match width {
                Some(width) => ColumnConstraint::Absolute(Width::Fixed(width + GAP)),
                None => ColumnConstraint::Hidden,
            });
        }
        table.lines().fold(String::new(), |text, line| text + line.trim_end() + "\n")
    }
}

fn rendered(content: &Content) -> Cell {
    // A line break in a reason would break the row.
    let cell = Cell::new(content.text.replace(['\n', '\r', '\t'], " "));
    match content.colour {
        Some(colour) => cell.fg(colour),
        None => cell,
    }
}

/// How wide each column gets on a page of `page` columns; `None`: left out.
///
/// `natural`: what each would like to have, 0 for nothing to show.
fn fit(columns: &[Column], natural: &[u16], page: Option<u16>) -> Vec<Option<u16>> {
    let mut widths: Vec<Option<u16>> = natural.iter().map(|n| Some(*n).filter(|n| *n > 0)).collect();
    let Some(page) = page.map(u32::from) else { return widths };
    let mut by_weight: Vec<usize> = (0..widths.len()).collect();
    by_weight.sort_by_key(|at| columns[*at].weight);
    for at in &by_weight {
        let excess = total(&widths).saturating_sub(page);
        if let Some(width) = &mut widths[*at] {
            let spare = u32::from(width.saturating_sub(columns[*at].least));
            *width -= spare.min(excess) as u16;
        }
    }
    // The most important one stays, whatever the page.
    for at in by_weight.iter().take(by_weight.len().saturating_sub(1)) {
        if total(&widths) > page {
            widths[*at] = None;
        }
    }
    // What was left out may have freed more than was needed: the others get it back, the heaviest first.
    for at in by_weight.iter().rev() {
        let room = page.saturating_sub(total(&widths));
        if let Some(width) = &mut widths[*at] {
            *width += room.min(u32::from(natural[*at] - *width)) as u16;
        }
    }
    widths
}

fn total(widths: &[Option<u16>]) -> u32 {
    let shown: Vec<u32> = widths.iter().flatten().map(|w| u32::from(*w)).collect();
    shown.iter().sum::<u32>() + u32::from(GAP) * (shown.len().saturating_sub(1)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [Column; 3] = [
        Column { head: "NAME", weight: 9, least: 6, right: false },
        Column { head: "N", weight: 5, least: 3, right: true },
        Column { head: "WHY", weight: 1, least: 4, right: false },
    ];

    #[test]
    fn a_wide_page_gives_everybody_what_they_like() {
        assert_eq!(fit(&COLUMNS, &[10, 4, 20], None), [Some(10), Some(4), Some(20)]);
        assert_eq!(fit(&COLUMNS, &[10, 4, 20], Some(38)), [Some(10), Some(4), Some(20)]);
    }

    #[test]
    fn the_least_important_is_cut_first_then_left_out() {
        assert_eq!(fit(&COLUMNS, &[10, 4, 20], Some(37)), [Some(10), Some(4), Some(19)]);
        assert_eq!(fit(&COLUMNS, &[10, 4, 20], Some(22)), [Some(10), Some(4), Some(4)]);
        assert_eq!(fit(&COLUMNS, &[10, 4, 20], Some(20)), [Some(9), Some(3), Some(4)]);
        assert_eq!(fit(&COLUMNS, &[10, 4, 20], Some(16)), [Some(10), Some(4), None]);
        assert_eq!(fit(&COLUMNS, &[10, 4, 20], Some(3)), [Some(6), None, None]);
    }

    #[test]
    fn whatever_the_page_the_table_fits_or_is_one_column() {
        for page in 1..60 {
            let widths = fit(&COLUMNS, &[10, 4, 20], Some(page));
            let shown = widths.iter().flatten().count();
            assert!(total(&widths) <= u32::from(page) || shown == 1, "{page}: {widths:?}");
        }
    }

    #[test]
    fn empty_columns_are_left_out() {
        let mut table = Table::new(&COLUMNS);
        table.row(vec![cell("zone.0".into()), cell("7".into()), cell(String::new())]);
        let page = Page { width: None, colour: false, now: std::time::UNIX_EPOCH };
        assert_eq!(table.render(&page), "NAME    N\nzone.0  7\n");
    }

    #[test]
    fn what_is_cut_says_so_and_stays_one_line() {
        let mut table = Table::new(&COLUMNS);
        table.row(vec![cell("zone.0".into()), cell("7".into()), cell("no such file\nor directory".into())]);
        let page = Page { width: Some(20), colour: false, now: std::time::UNIX_EPOCH };
        assert_eq!(table.render(&page), "NAME    N  WHY\nzone.0  7  no such …\n");
    }
}
