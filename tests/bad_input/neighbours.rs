//! The healthy instances beside a bad one.

use std::collections::BTreeMap;

use bigbrother::http::view::InstanceView;

use super::host::{Host, expect, until};

/// How long they may be silent before they would be killed as hung: what they notice shows as a restart.
pub const TIMEOUT_MS: u64 = 2_000;

pub struct Neighbours(BTreeMap<String, InstanceView>);

const NAMES: [&str; 3] = ["beat.0", "zone.0", "zone.1"];

/// Their part of cluster.toml.
pub fn toml(host: &Host) -> String {
    let (zone, beat) = (host.zone("0"), host.beater());
    format!(
        r#"
[process.zone]
command = {zone}
count = 2
heartbeat = {{ mode = "native", interval = "250ms", timeout = "{TIMEOUT_MS}ms" }}

[process.beat]
command = {beat}
heartbeat = {{ mode = "notify", interval = "250ms", timeout = "{TIMEOUT_MS}ms" }}
"#
    )
}

impl Neighbours {
    /// They are ready; remembers who they are.
    pub fn of(host: &Host) -> Neighbours {
        Neighbours(NAMES.map(|name| (name.to_owned(), host.ready(name))).into())
    }

    /// They live on as if nothing had happened: the same runs, and heartbeats that arrive in time.
    pub fn noticed_nothing(&self, host: &Host) {
        until("the neighbours beat", || {
            let views = host.ps()?;
            for (name, before) in &self.0 {
                let now = &views[name];
                assert_eq!((now.run, now.restarts, now.state.as_str()), (before.run, 0, "ready"), "{now:?}");
                expect(now.heartbeat.age_ms.is_some_and(|age| age < TIMEOUT_MS), now)?;
            }
            Ok(())
        });
        for name in NAMES {
            assert_eq!(host.witnessed(name).len(), 1, "{name}");
            let hang = host.events(name).into_iter().find(|event| event.kind == "hang");
            assert_eq!(hang, None, "{name}");
        }
    }

    /// For as long as something bad goes on: until it is seen, they notice nothing.
    pub fn watch_until<T>(&self, host: &Host, what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
        until(what, || {
            let views = host.ps()?;
            for (name, before) in &self.0 {
                assert_eq!(
                    (views[name].run, views[name].restarts),
                    (before.run, 0),
                    "{name}: {:?}",
                    views[name]
                );
            }
            look()
        })
    }
}
