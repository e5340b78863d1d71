//! Where output goes and what that place can show.
//!
//! Owns the questions "JSON?", "how wide?", "colours?", "progress?" and "is it meant?". Results go to stdout, progress and
//! errors to stderr.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, SystemTime};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::exit::Failure;
use super::render::Page;

/// What stdout and stderr can show.
#[derive(Clone, Debug)]
pub struct Output {
    /// JSON instead of text.
    pub json: bool,
    width: Option<u16>,
    colour: bool,
    progress: bool,
}

impl Output {
    /// Looks at stdout, stderr, `COLUMNS`, `NO_COLOR` and `TERM`.
    pub fn new(json: bool) -> Output {
        let terminal = io::stdout().is_terminal();
        let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty())
            || std::env::var_os("TERM").is_some_and(|v| v == "dumb");
        let columns = std::env::var("COLUMNS").ok().and_then(|c| c.parse().ok());
        Output {
            json,
            width: width(columns, comfy_table::Table::new().width()),
            colour: terminal && !plain,
            progress: !json && io::stderr().is_terminal(),
        }
    }

    /// Asks on the terminal whether something is meant; without one, the command itself says so.
    pub fn confirmed(&self, question: &str) -> Result<bool, Failure> {
        if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
            return Ok(true);
        }
        eprint!("{question} [y/N] ");
        io::stderr().flush().map_err(Failure::Output)?;
        let mut answer = String::new();
        io::stdin()
            .read_line(&mut answer)
            .map_err(|source| Failure::Local { what: "cannot read the answer".to_owned(), source })?;
        Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
    }

    /// The page to render for, as of now.
    pub fn page(&self) -> Page {
        Page { width: self.width, colour: self.colour, now: SystemTime::now() }
    }

    /// Prints text, ending it with a newline where it has none.
    pub fn text(&self, text: &str) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())
            .and_then(|()| if text.ends_with('\n') { Ok(()) } else { out.write_all(b"\n") })
            .and_then(|()| out.flush())
            .map_err(Failure::Output)
    }

    /// Prints bytes as they are.
    pub fn bytes(&self, bytes: &[u8]) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        out.write_all(bytes).and_then(|()| out.flush()).map_err(Failure::Output)
    }

    /// Prints a value as JSON: indented when it is the whole answer.
    pub fn value<T: Serialize>(&self, value: &T) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(value).map_err(|e| Failure::Output(e.into()))?;
        self.text(&text)
    }

    /// Prints a value as one line of JSON: one of a stream.
    pub fn line<T: Serialize>(&self, value: &T) -> Result<(), Failure> {
        let text = serde_json::to_string(value).map_err(|e| Failure::Output(e.into()))?;
        self.text(&text)
    }

    /// The answer: JSON when asked for, else the text.
    pub fn answer<T: Serialize>(&self, value: &T, text: impl FnOnce(&Page) -> String) -> Result<(), Failure> {
        if self.json { self.value(value) } else { self.text(&text(&self.page())) }
    }

    /// A progress bar on stderr; one that shows nothing when stderr is no terminal.
    pub fn progress(&self, length: u64, what: &str) -> ProgressBar {
        if !self.progress {
            return ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::hidden());
        }
        let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{spinner} {prefix} {pos}/{len} {wide_bar} {elapsed} {msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_prefix(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        bar
    }
}

/// The columns that there are: as told, else the terminal's. A serial console has 0, which says nothing.
fn width(told: Option<u16>, terminal: Option<u16>) -> Option<u16> {
    told.filter(|n| *n > 0).or(terminal.filter(|n| *n > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_width_of_nothing_is_no_width() {
        assert_eq!(width(Some(100), Some(80)), Some(100));
        assert_eq!(width(Some(0), Some(80)), Some(80));
        assert_eq!(width(None, Some(0)), None);
    }
}
