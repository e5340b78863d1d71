//! What is wrong with a cluster.toml, and how it is shown.
//!
//! Owns the collecting ([`Sink`]) and the rendering ([`Faults`]) of faults: each begins with a line
//! `FILE:LINE:COLUMN: message`, which editors and terminals can follow, then the place with a caret under it.
//! Never decides what a fault is. Called by the readers of this module, and by whoever shows the result.

use std::cell::RefCell;
use std::fmt;
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

/// More faults than this are counted, not shown.
const SHOWN: usize = 100;

const BOLD_RED: &str = "\u{1b}[1;31m";
const RESET: &str = "\u{1b}[0m";

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where: bytes of the text.
    pub span: Range<usize>,
    /// What is wrong, in one line.
    pub title: String,
    /// What to do about it.
    pub help: Option<String>,
}

/// Everything that is wrong with one file, in the order of the text. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults {
    file_name: String,
    text: String,
    faults: Vec<Fault>,
}

impl std::error::Error for Faults {}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl Faults {
    pub(super) fn new(file_name: &str, text: &str, mut faults: Vec<Fault>) -> Self {
        faults
            .sort_by(|a, b| (a.span.start, a.span.end, &a.title).cmp(&(b.span.start, b.span.end, &b.title)));
        faults.dedup();
        Faults { file_name: file_name.to_owned(), text: text.to_owned(), faults }
    }

    /// The faults, in the order of the text.
    pub fn iter(&self) -> impl Iterator<Item = &Fault> {
        self.faults.iter()
    }

    /// Line and column of a fault, both from 1; a column is a character.
    pub fn position(&self, fault: &Fault) -> (usize, usize) {
        let line = line_at(&self.text, fault.span.start);
        let start = clip(&self.text, fault.span.start);
        (self.text[..line.start].matches('\n').count() + 1, self.text[line.start..start].chars().count() + 1)
    }

    /// One line per fault: `LINE:COLUMN: message`.
    pub fn lines(&self) -> Vec<String> {
        let line = |fault: &Fault| {
            let (line, column) = self.position(fault);
            format!("{line}:{column}: {}", fault.title)
        };
        self.faults.iter().map(line).collect()
    }

    /// The whole report for people: every fault with its place, then how many there are.
    pub fn render(&self, colour: bool) -> String {
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        let mut out = String::new();
        for fault in self.faults.iter().take(SHOWN) {
            let (line, column) = self.position(fault);
            let place = format!("{}:{line}:{column}:", self.file_name);
            if colour {
                out.push_str(&format!("{BOLD_RED}{place} {}{RESET}\n", fault.title));
            } else {
                out.push_str(&format!("{place} {}\n", fault.title));
            }
            out.push_str(&self.snippet(fault, line, &renderer));
            out.push_str("\n\n");
        }
        match self.faults.len() {
            1 => out.push_str("1 fault\n"),
            n if n > SHOWN => out.push_str(&format!("{n} faults, the first {SHOWN} are shown\n")),
            n => out.push_str(&format!("{n} faults\n")),
        }
        out
    }

    fn snippet(&self, fault: &Fault, number: usize, renderer: &Renderer) -> String {
        let line = line_at(&self.text, fault.span.start);
        let start = clip(&self.text, fault.span.start) - line.start;
        let end = clip(&self.text, fault.span.end).clamp(line.start + start, line.end) - line.start;
        let mut group = annotate_snippets::Group::with_level(Level::ERROR).element(
            Snippet::source(&self.text[line])
                .line_start(number)
                .annotation(AnnotationKind::Primary.span(start..end)),
        );
        if let Some(help) = &fault.help {
            group = group.element(Level::HELP.message(help.as_str()));
        }
        renderer.render(&[group])
    }
}

/// The nearest place at or before `at` that is inside the text and begins a character.
fn clip(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// The line that holds this byte, without its end.
pub(super) fn line_at(text: &str, at: usize) -> Range<usize> {
    let at = clip(text, at);
    let start = text[..at].rfind('\n').map_or(0, |n| n + 1);
    let end = text[at..].find('\n').map_or(text.len(), |n| at + n);
    let end = if text[start..end].ends_with('\r') && end > at { end - 1 } else { end };
    start..end
}

/// Where the readers of one file put the faults that they find.
#[derive(Default)]
pub(super) struct Sink(RefCell<Vec<Fault>>);

impl Sink {
    pub fn report(&self, span: Range<usize>, title: impl Into<String>, help: Option<String>) {
        self.0.borrow_mut().push(Fault { span, title: title.into(), help });
    }

    pub fn into_faults(self) -> Vec<Fault> {
        self.0.into_inner()
    }
}

/// "did you mean" for a name that does not exist, or the names that do.
pub(super) fn suggestion<'a>(found: &str, names: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let names: Vec<&str> = names.into_iter().collect();
    // A long name is no misspelling of a key, and comparing costs time by the length.
    let near = names
        .iter()
        .filter(|_| found.chars().count() <= 64)
        .map(|name| (strsim::damerau_levenshtein(&found.to_lowercase(), &name.to_lowercase()), *name))
        .filter(|(distance, name)| *distance <= (name.chars().count() / 3).max(1))
        .min();
    match near {
        Some((_, name)) => Some(format!("did you mean `{name}`?")),
        None if names.is_empty() => None,
        None => Some(format!("there are: {}", names.join(", "))),
    }
}
