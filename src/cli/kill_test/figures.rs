//! The figures of a kill test, and how they are shown. Pure.

use serde::Serialize;

use super::KillTestView;
use crate::cli::render::table::{Column, Table, cell};
use crate::cli::render::{Page, counted, span};

/// The spread of some spans, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// The shortest.
    pub min_ms: f64,
    /// Half of them are shorter.
    pub median_ms: f64,
    /// 95 % of them are not longer (nearest rank).
    pub p95_ms: f64,
    /// The longest.
    pub max_ms: f64,
}

impl Figures {
    /// The figures of these spans; `None` of none.
    pub fn of(spans: impl Iterator<Item = f64>) -> Option<Figures> {
        let mut spans: Vec<f64> = spans.collect();
        spans.sort_by(f64::total_cmp);
        let n = spans.len();
        let (min, max) = (*spans.first()?, *spans.last()?);
        let rank = (n * 95).div_ceil(100) - 1;
        Some(Figures {
            min_ms: min,
            median_ms: (spans[(n - 1) / 2] + spans[n / 2]) / 2.0,
            p95_ms: spans[rank],
            max_ms: max,
        })
    }
}

const fn columns(from: &'static str) -> [Column; 5] {
    [
        Column { head: from, weight: 5, least: 9, right: false },
        Column { head: "MIN", weight: 2, least: 8, right: true },
        Column { head: "MEDIAN", weight: 4, least: 8, right: true },
        Column { head: "P95", weight: 3, least: 8, right: true },
        Column { head: "MAX", weight: 1, least: 8, right: true },
    ]
}

const SIGNALLED: [Column; 5] = columns("SIGNAL TO");
pub(super) const KILLED: [Column; 5] = columns("KILLED TO");

/// What was measured.
pub(super) fn table(
    columns: &'static [Column],
    restarted: Option<Figures>,
    ready: Option<Figures>,
    page: &Page,
) -> String {
    let mut table = Table::new(columns);
    for (name, figures) in [("restarted", restarted), ("ready", ready)] {
        if let Some(f) = figures {
            let mut row = vec![cell(name.to_owned())];
            row.extend([f.min_ms, f.median_ms, f.p95_ms, f.max_ms].map(|ms| cell(span(ms))));
            table.row(row);
        }
    }
    table.render(page)
}

/// The whole result as text.
pub fn render(view: &KillTestView, page: &Page) -> String {
    let mut text = format!("{} to {}, seed {}\n", view.signal, counted(view.kills.len(), "run"), view.seed);
    if view.restarted.is_some() {
        text.push_str(&table(&SIGNALLED, view.restarted, view.ready, page));
    }
    for kill in view.kills.iter().filter(|k| !k.ok) {
        let why = kill.detail.as_deref().unwrap_or("");
        text.push_str(&format!("{} (run {}, pid {}): {why}\n", kill.instance, kill.run_before, kill.pid));
    }
    text.push_str(&match view.missed {
        0 => "all came back\n".to_owned(),
        missed => format!("{missed} did not come back in time\n"),
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::kill_test::KillView;

    #[test]
    fn figures_are_those_of_the_textbook() {
        assert_eq!(Figures::of([].into_iter()), None);
        let one = Figures::of([7.0].into_iter()).unwrap();
        assert_eq!((one.min_ms, one.median_ms, one.p95_ms, one.max_ms), (7.0, 7.0, 7.0, 7.0));
        let many = Figures::of((1..=40).rev().map(f64::from)).unwrap();
        assert_eq!((many.min_ms, many.median_ms, many.p95_ms, many.max_ms), (1.0, 20.5, 38.0, 40.0));
    }

    #[test]
    fn the_result_names_what_did_not_come_back() {
        let kill = KillView {
            instance: "zone.1".parse().unwrap(),
            pid: 42,
            at: "2026-01-02T03:04:05.678Z".to_owned(),
            run_before: 7,
            run: Some(9),
            restarted_ms: Some(1.25),
            ready_ms: Some(12.5),
            ok: true,
            detail: None,
        };
        let missed = KillView {
            run: None,
            restarted_ms: None,
            ready_ms: None,
            ok: false,
            detail: Some("no new run within 30s".to_owned()),
            ..kill.clone()
        };
        let view = KillTestView {
            signal: "SIGKILL".to_owned(),
            seed: 5,
            count: 2,
            missed: 1,
            restarted: Figures::of([1.25].into_iter()),
            ready: Figures::of([12.5].into_iter()),
            kills: vec![kill, missed],
        };
        let page = Page { width: None, colour: false, now: std::time::UNIX_EPOCH };
        assert_eq!(
            render(&view, &page),
            "SIGKILL to 2 runs, seed 5\n\
             SIGNAL TO      MIN   MEDIAN      P95      MAX\n\
             restarted   1.2 ms   1.2 ms   1.2 ms   1.2 ms\n\
             ready      12.5 ms  12.5 ms  12.5 ms  12.5 ms\n\
             zone.1 (run 7, pid 42): no new run within 30s\n\
             1 did not come back in time\n"
        );
    }
}
