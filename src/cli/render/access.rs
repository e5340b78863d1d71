//! Tokens as a table, entries of the audit trail as sentences.

use comfy_table::Color;

use super::Page;
use super::table::{Column, Table, cell};
use crate::http::view::{AuditView, TokenView};

const TOKENS: [Column; 4] = [
    Column { head: "NAME", weight: 100, least: 10, right: false },
    Column { head: "ROLE", weight: 95, least: 7, right: false },
    Column { head: "MADE", weight: 80, least: 6, right: true },
    Column { head: "EXPIRES", weight: 90, least: 20, right: false },
];

/// `token list`
pub fn tokens(list: &[TokenView], page: &Page) -> String {
    if list.is_empty() {
        return "there are no tokens".to_owned();
    }
    let mut table = Table::new(&TOKENS);
    for token in list {
        let (expires, colour) = match &token.expires_at {
            Some(_) if token.expired => ("expired".to_owned(), Some(Color::Red)),
            Some(at) => (at.clone(), None),
            None => ("never".to_owned(), None),
        };
        table.row(vec![
            cell(token.name.to_string()),
            cell(token.role.to_string()),
            cell(page.since(&token.created_at)),
            cell(expires).colour(colour),
        ]);
    }
    table.render(page)
}

/// One line of `audit`.
pub fn sentence(entry: &AuditView, page: &Page) -> String {
    let AuditView { at, host, who, from, via, what, request, status, refused, change, missed } = entry;
    let via = via.as_ref().map(|via| format!(" via {via}")).unwrap_or_default();
    let mut text = format!("{at} {host}  {who} ({from}{via})  {what}");
    for part in [request, change].into_iter().flatten() {
        text.push_str(&format!(" {part}"));
    }
    let (outcome, colour) = match refused {
        Some(why) => (format!("{status} {why}"), Color::Red),
        None => (status.to_string(), Color::Green),
    };
    text.push_str(&format!("  → {}", page.paint(&outcome, Some(colour))));
    if *missed > 0 {
        text.push_str(&format!("  ({missed} entries before this one are not written down)"));
    }
    text
}
