//! One table of a cluster.toml and the values in it, each with its place.
//!
//! Owns the reading of single values: text, numbers, durations, sizes, words. A value that cannot be read is
//! reported to the [`Sink`] and read as `None`, so that the caller goes on and finds the next fault too. Knows
//! no key by name. Called by the readers of `[cluster]`, `[host]` and `[process.*]`.

use std::ops::Range;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::fault::{Sink, suggestion};

/// A year: longer spans are mistakes, and shorter ones fit every clock.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);

/// A duration as it is written in the file; `None`: this is none.
pub fn read_duration(text: &str) -> Option<Duration> {
    // humantime's sums may overflow; ten digits a number and four numbers do not.
    let digits = text.split(|c: char| !c.is_ascii_digit()).map(str::len).max().unwrap_or(0);
    if digits > 9 || text.len() > 40 { None } else { humantime::parse_duration(text).ok() }
}

/// A table, or nothing where the file has none.
#[derive(Clone)]
pub(super) struct Section<'a> {
    table: Option<&'a DeTable<'a>>,
    /// Its header, its braces, or the start of the file.
    pub span: Range<usize>,
    sink: &'a Sink,
}

/// One value and its place.
#[derive(Clone)]
pub(super) struct Item<'a> {
    /// The key that it stands behind; of a list's element: the list's key.
    pub key: &'a str,
    /// Where the key stands.
    pub key_span: Range<usize>,
    /// Where the value stands.
    pub span: Range<usize>,
    pub value: &'a DeValue<'a>,
    pub sink: &'a Sink,
}

impl<'a> Section<'a> {
    pub fn root(document: &'a Spanned<DeTable<'a>>, sink: &'a Sink) -> Self {
        Section { table: Some(document.get_ref()), span: 0..0, sink }
    }

    /// The value of a key.
    pub fn item(&self, key: &str) -> Option<Item<'a>> {
        let (key, value) = self.table?.get_key_value(key)?;
        Some(self.entry(key, value))
    }

    /// All values, in the order of their keys.
    pub fn items(&self) -> Vec<Item<'a>> {
        self.table.iter().flat_map(|table| table.iter()).map(|(k, v)| self.entry(k, v)).collect()
    }

    fn entry(&self, key: &'a Spanned<toml::de::DeString<'a>>, value: &'a Spanned<DeValue<'a>>) -> Item<'a> {
        Item {
            key: key.get_ref(),
            key_span: key.span(),
            span: value.span(),
            value: value.get_ref(),
            sink: self.sink,
        }
    }

    /// The table of a key; an empty one when the key is missing or holds something else, which is a fault:
    /// `example` shows what it may hold.
    pub fn section(&self, key: &str, example: &str) -> Section<'a> {
        let wanted = format!("a table such as {example}");
        self.read(key, |item| item.section(&wanted)).unwrap_or_else(|| self.empty())
    }

    /// The table of a key once more: what is no table has its fault already.
    pub fn again(&self, key: &str) -> Section<'a> {
        let table = self.item(key).filter(|item| item.value.is_table());
        table.and_then(|item| item.section("a table")).unwrap_or_else(|| self.empty())
    }

    fn empty(&self) -> Section<'a> {
        Section { table: None, span: self.span.clone(), sink: self.sink }
    }

    pub fn has(&self, key: &str) -> bool {
        self.item(key).is_some()
    }

    /// Reads a key if it is there; a fault reads as missing.
    pub fn read<T>(&self, key: &str, read: impl FnOnce(&Item<'a>) -> Option<T>) -> Option<T> {
        self.item(key).and_then(|item| read(&item))
    }

    /// Reports a fault about a key of this table: at its value, or at the table's head when it is missing.
    pub fn fault(&self, key: &str, title: impl Into<String>, help: Option<&str>) {
        let span = self.item(key).map_or(self.span.clone(), |item| item.span);
        self.sink.report(span, title, help.map(str::to_owned));
    }
}

impl<'a> Item<'a> {
    /// Reports a fault at this value.
    pub fn refuse<T>(&self, title: impl Into<String>, help: Option<&str>) -> Option<T> {
        self.sink.report(self.span.clone(), title, help.map(str::to_owned));
        None
    }

    /// Reports that this value should have been something else: `wanted` says what, with an example.
    pub fn wanted<T>(&self, wanted: &str) -> Option<T> {
        let found = match self.value {
            DeValue::String(text) if text.chars().count() <= 40 => format!("{text:?}"),
            DeValue::String(_) => "a long string".to_owned(),
            DeValue::Integer(n) if n.as_str().len() <= 20 => n.to_string(),
            DeValue::Integer(_) => "a long integer".to_owned(),
            DeValue::Float(n) if n.as_str().len() <= 20 => n.to_string(),
            DeValue::Float(_) => "a long number".to_owned(),
            DeValue::Boolean(b) => b.to_string(),
            DeValue::Datetime(_) => "a date".to_owned(),
            DeValue::Array(_) => "a list".to_owned(),
            DeValue::Table(_) => "a table".to_owned(),
        };
        self.refuse(format!("`{}` wants {wanted}, not {found}", self.key), None)
    }

    pub fn section(&self, wanted: &str) -> Option<Section<'a>> {
        match self.value {
            DeValue::Table(table) => {
                Some(Section { table: Some(table), span: self.span.clone(), sink: self.sink })
            }
            _ => self.wanted(wanted),
        }
    }

    pub fn list(&self, wanted: &str) -> Option<Vec<Item<'a>>> {
        let DeValue::Array(array) = self.value else { return self.wanted(wanted) };
        let element = |value: &'a Spanned<DeValue<'a>>| Item {
            span: value.span(),
            value: value.get_ref(),
            ..self.clone()
        };
        Some(array.iter().map(element).collect())
    }

    /// A list of strings, each read by `read`; the good ones when some are faulty.
    pub fn list_of<T>(&self, wanted: &str, read: impl Fn(&Item<'a>) -> Option<T>) -> Option<Vec<T>> {
        Some(self.list(wanted)?.iter().filter_map(read).collect())
    }

    pub fn as_str(&self) -> Option<&'a str> {
        self.value.as_str()
    }

    /// A string that is not empty.
    pub fn text(&self) -> Option<String> {
        match self.as_str() {
            Some("") => self.refuse(format!("`{}` is empty", self.key), None),
            Some(text) => Some(text.to_owned()),
            None => self.wanted("a string"),
        }
    }

    /// A string, empty or not.
    pub fn any_text(&self) -> Option<String> {
        self.as_str().map(str::to_owned).or_else(|| self.wanted("a string"))
    }

    pub fn boolean(&self) -> Option<bool> {
        self.value.as_bool().or_else(|| self.wanted("true or false"))
    }

    /// A whole number in a range.
    pub fn number(&self, range: std::ops::RangeInclusive<i64>) -> Option<i64> {
        let wanted = || match range.end() {
            end if *end < i64::from(i32::MAX) => format!("a whole number from {} to {end}", range.start()),
            _ => format!("a whole number, at least {}", range.start()),
        };
        let DeValue::Integer(found) = self.value else { return self.wanted(&wanted()) };
        let number = i64::from_str_radix(found.as_str(), found.radix()).ok();
        number.filter(|n| range.contains(n)).or_else(|| self.wanted(&wanted()))
    }

    /// A whole number from `least` up.
    pub fn count(&self, least: u32) -> Option<u32> {
        self.number(i64::from(least)..=i64::from(i32::MAX)).and_then(|n| u32::try_from(n).ok())
    }

    /// A duration, zero allowed.
    pub fn duration(&self) -> Option<Duration> {
        const WANTED: &str = "a duration such as \"250ms\", \"8s\" or \"2h\"";
        match self.as_str().and_then(read_duration) {
            Some(duration) if duration > LONGEST => {
                self.refuse(format!("`{}` is over a year", self.key), None)
            }
            Some(duration) => Some(duration),
            None => self.wanted(WANTED),
        }
    }

    /// A duration that is not zero.
    pub fn span_of_time(&self) -> Option<Duration> {
        let duration = self.duration()?;
        if duration.is_zero() {
            return self.refuse(format!("`{}` must not be zero", self.key), None);
        }
        Some(duration)
    }

    /// A number of bytes.
    pub fn size(&self) -> Option<u64> {
        const WANTED: &str = "a size such as \"10MiB\" or \"2GiB\"";
        let size = match self.value {
            DeValue::String(text) => text.parse::<bytesize::ByteSize>().ok().map(|size| size.as_u64()),
            DeValue::Integer(n) => u64::from_str_radix(n.as_str(), n.radix()).ok(),
            _ => None,
        };
        // The kernel's files and limits take signed numbers.
        size.filter(|size| i64::try_from(*size).is_ok()).or_else(|| self.wanted(WANTED))
    }

    /// A number of bytes that is not zero.
    pub fn positive_size(&self) -> Option<u64> {
        let size = self.size()?;
        if size == 0 {
            return self.refuse(format!("`{}` must not be zero", self.key), None);
        }
        Some(size)
    }

    /// One of a few words.
    pub fn word<T: Clone>(&self, words: &[(&str, T)]) -> Option<T> {
        let names = || words.iter().map(|(name, _)| *name);
        let all = || names().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
        let Some(text) = self.as_str() else { return self.wanted(&format!("one of {}", all())) };
        if let Some((_, value)) = words.iter().find(|(name, _)| *name == text) {
            return Some(value.clone());
        }
        let near = suggestion(text, names()).filter(|help| help.starts_with("did"));
        let help = near.map_or_else(String::new, |near| format!("{near} ")) + "it is one of " + &all();
        let shown: String = text.chars().take(40).collect();
        self.refuse(format!("`{}` knows no {shown:?}", self.key), Some(&help))
    }

    /// Anything that is written as text and has a parser of its own.
    pub fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(&self) -> Option<T> {
        let text = self.text()?;
        match text.parse() {
            Ok(value) => Some(value),
            Err(reason) => self.refuse(format!("{text:?}: {reason}"), None),
        }
    }

    /// A table of texts, as in labels; `read` reads one value.
    pub fn map<T>(
        &self,
        wanted: &str,
        read: impl Fn(&Item<'a>) -> Option<T>,
    ) -> Option<std::collections::BTreeMap<String, T>> {
        let section = self.section(wanted)?;
        let entry = |item: &Item<'a>| {
            if item.key.is_empty() {
                item.sink.report(item.key_span.clone(), "an empty name", None);
            }
            Some((item.key.to_owned(), read(item)?))
        };
        Some(section.items().iter().filter_map(entry).collect())
    }

    /// The place of the brace that stands at byte `at` of this string, up to the end of its placeholder.
    pub fn brace_span(&self, source: &str, at: usize) -> Range<usize> {
        let (Some(text), Some(raw)) = (self.as_str(), source.get(self.span.clone())) else {
            return self.span.clone();
        };
        let braces = |text: &str| text.matches(['{', '}']).count();
        // With a brace written as an escape, or a text in which they cannot be told: the whole string.
        if braces(text) != braces(raw) {
            return self.span.clone();
        }
        let Some((start, _)) = raw.match_indices(['{', '}']).nth(braces(&text[..at])) else {
            return self.span.clone();
        };
        let end = match raw[start..].find('}') {
            Some(end) if raw[start..].starts_with('{') => start + end + 1,
            _ => start + 1,
        };
        self.span.start + start..self.span.start + end
    }
}
