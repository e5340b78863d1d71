//! Events as sentences.

use comfy_table::Color;

use super::Page;
use crate::http::view::EventView;

/// One event as a line: time, instance or host, what happened.
pub fn sentence(event: &EventView, page: &Page) -> String {
    let time = event.at.split_once('T').map_or(event.at.as_str(), |(_, time)| time.trim_end_matches('Z'));
    let time = page.paint(time, Some(Color::DarkGrey));
    let told = page.paint(&told(event), colour(event));
    let about = event.instance.as_ref().map_or_else(|| event.host.to_string(), ToString::to_string);
    format!("{time}  {about:<10} {told}")
}

/// What happened, in words.
fn told(event: &EventView) -> String {
    let run = event.run.map(|run| format!("run {run} ")).unwrap_or_default();
    let detail = event.detail.as_deref().filter(|d| !d.is_empty());
    let with_detail = |text: String| match detail {
        Some(detail) => format!("{text}: {detail}"),
        None => text,
    };
    match event.kind.as_str() {
        "started" => with_detail(format!("{run}started")),
        "ready" => with_detail(format!("{run}is ready")),
        "draining" => with_detail(format!("{run}drains")),
        "stopping" => with_detail(format!("{run}is asked to stop")),
        "hang" => with_detail(format!("{run}hangs")),
        "exited" | "stopped" => {
            let verb = if event.kind == "exited" { "has ended" } else { "is gone" };
            let cause = event.cause.as_ref().map(|c| format!(" ({c})")).unwrap_or_default();
            with_detail(format!("{run}{verb}{cause}"))
        }
        "backoff" => with_detail("waits before the next start".to_owned()),
        "failed" => with_detail("has failed and is given up".to_owned()),
        "paused" => with_detail("is stopped until `start`".to_owned()),
        "resumed" => with_detail("may run again".to_owned()),
        "spawn-failed" => with_detail(format!("{run}could not be started")),
        "spawn-stuck" => with_detail(format!("{run}is stuck in its start")),
        "unenforced" => with_detail(format!("{run}runs without a limit that was asked for")),
        "port-moved" => with_detail(format!("{run}has another port")),
        "port-taken" => with_detail(format!("{run}may not get its port")),
        "adopted" => with_detail(format!("{run}was running already and is watched on")),
        "announce" => with_detail("announced".to_owned()),
        "host-down" => with_detail("is down".to_owned()),
        "host-up" => with_detail("is back".to_owned()),
        "primary" => with_detail("is the primary now".to_owned()),
        "moved" => with_detail("moves".to_owned()),
        other => with_detail(format!("{run}{other}")),
    }
}

fn colour(event: &EventView) -> Option<Color> {
    match event.kind.as_str() {
        "ready" | "host-up" => Some(Color::Green),
        "hang" | "failed" | "spawn-failed" | "spawn-stuck" | "host-down" => Some(Color::Red),
        "exited" | "stopped" if !matches!(event.cause.as_deref(), Some("stop" | "operator")) => {
            Some(Color::Yellow)
        }
        "backoff" | "unenforced" | "port-moved" | "port-taken" => Some(Color::Yellow),
        "announce" | "primary" | "moved" => Some(Color::Cyan),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: &str, cause: Option<&str>, detail: Option<&str>) -> EventView {
        EventView {
            seq: 1,
            at: "2026-01-02T03:04:05.678Z".to_owned(),
            host: "dev".parse().unwrap(),
            instance: "zone.1".parse().ok(),
            run: Some(7),
            kind: kind.to_owned(),
            cause: cause.map(str::to_owned),
            detail: detail.map(str::to_owned),
            number: None,
        }
    }

    const PLAIN: Page = Page { width: None, colour: false, now: std::time::UNIX_EPOCH };

    #[test]
    fn events_are_told_as_sentences() {
        for (event, expected) in [
            (event("started", None, None), "03:04:05.678  zone.1     run 7 started"),
            (
                event("hang", None, Some("no heartbeat for 1s")),
                "03:04:05.678  zone.1     run 7 hangs: no heartbeat for 1s",
            ),
            (
                event("exited", Some("signal"), Some("SIGSEGV")),
                "03:04:05.678  zone.1     run 7 has ended (signal): SIGSEGV",
            ),
            (event("announce", None, Some("SIGKILL")), "03:04:05.678  zone.1     announced: SIGKILL"),
            (
                EventView { instance: None, run: None, ..event("host-down", None, Some("not heard for 8s")) },
                "03:04:05.678  dev        is down: not heard for 8s",
            ),
            (
                EventView {
                    run: None,
                    ..event("moved", Some("host-down"), Some("from alpha to dev: alpha was lost"))
                },
                "03:04:05.678  zone.1     moves: from alpha to dev: alpha was lost",
            ),
            (event("frobbed", None, None), "03:04:05.678  zone.1     run 7 frobbed"),
        ] {
            assert_eq!(sentence(&event, &PLAIN), expected);
        }
    }

    #[test]
    fn colours_only_where_they_are_allowed() {
        let hang = event("hang", None, None);
        assert!(!sentence(&hang, &PLAIN).contains('\x1b'));
        let coloured = sentence(&hang, &Page { colour: true, ..PLAIN });
        assert!(coloured.contains("\x1b[31mrun 7 hangs\x1b[0m"), "{coloured:?}");
    }
}
