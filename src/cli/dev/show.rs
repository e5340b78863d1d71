//! What a demonstration shows, and when: a server that hangs, then a host that is lost and comes back.
//!
//! Owns the order of the acts. What is done to processes is the household's; what came of it is told by events.

use std::net::UdpSocket;
use std::time::Duration;

use tokio::time::Instant;

use super::Seen;
use super::folder::{Folder, HANG_TIMEOUT};
use super::household::Household;
use crate::cli::api::Api;
use crate::cli::exit::Failure;
use crate::cli::render::{counted, span};
use crate::http::view::{InstanceView, StatusView};
use crate::spec::HostName;

/// From the start until all servers are ready.
const START: Duration = Duration::from_secs(30);
/// From ready to the first fault that is shown.
const CALM: Duration = Duration::from_secs(4);
/// From the hang to the loss of a host: by then the short spans of the files are in force.
const PAUSE: Duration = Duration::from_secs(8);
/// How long the lost host stays away once everything runs again.
const AWAY: Duration = Duration::from_secs(3);
/// What does not run again by then is told as it is.
const LONGEST: Duration = Duration::from_secs(30);

/// What comes next.
enum Act {
    /// Nothing any more.
    Over,
    Hang(Instant),
    Lose(Instant),
    /// This host was lost then.
    Heal(HostName, Instant),
    BringBack(HostName, Instant),
}

/// See the module.
pub struct Show {
    hosts: Vec<Seen>,
    wanted: usize,
    next: Act,
}

impl Show {
    /// Nothing is shown until [`Show::begin`].
    pub fn new(folder: &Folder) -> Show {
        let seen =
            |place: &super::folder::Place| Seen { name: place.name.clone(), api: Api::new(place.api()) };
        Show { hosts: folder.places().iter().map(seen).collect(), wanted: 0, next: Act::Over }
    }

    /// All hosts.
    pub fn hosts(&self) -> &[Seen] {
        &self.hosts
    }

    /// From now on faults are shown.
    pub fn begin(&mut self) {
        self.next = Act::Hang(Instant::now() + CALM);
    }

    /// What runs where, of the hosts that answer.
    async fn instances(&self) -> Vec<InstanceView> {
        let mut all = Vec::new();
        for host in &self.hosts {
            let path = format!("/v1/instances?host={}", host.name);
            let list: Vec<InstanceView> = host.api.get(&path).await.unwrap_or_default();
            // Each host tells of its own.
            all.extend(list.into_iter().filter(|instance| instance.host == host.name));
        }
        all.sort_by(|a, b| a.instance.cmp(&b.instance));
        all
    }

    /// Waits for the agents and all servers.
    pub async fn all_ready(
        &mut self,
        zones: u32,
        household: &mut Household,
    ) -> Result<Vec<InstanceView>, Failure> {
        self.wanted = zones as usize;
        let began = Instant::now();
        loop {
            household.must_live()?;
            // Until an agent listens there is no answer, which is no failure yet.
            let list = self.instances().await;
            let ready = count_ready(&list);
            if ready == self.wanted {
                return Ok(list);
            }
            let given_up = list.iter().any(|i| i.state == "failed");
            if given_up || began.elapsed() > START {
                let why =
                    |i: &InstanceView| i.reason.as_ref().map_or(String::new(), |why| format!(": {why}"));
                let seen = list.iter().map(|i| format!("{} {}{}", i.instance, i.state, why(i)));
                return Err(Failure::NotSo(format!(
                    "only {ready} of {zones} servers got ready in {} s ({}); the agents' logs end:\n{}",
                    began.elapsed().as_secs(),
                    seen.collect::<Vec<_>>().join(", "),
                    household.agent_logs()
                )));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What there is to see, and what to type in another terminal.
    pub async fn welcome(&self, list: &[InstanceView], household: &Household) -> Result<String, Failure> {
        let program = std::env::args().next().unwrap_or_else(|| "bigbrother".to_owned());
        let Some(first) = self.hosts.first() else { return Ok(String::new()) };
        let status: StatusView = first.api.get("/v1/status").await?;
        let keeper =
            status.keeper.as_ref().map(|k| format!(" and a keeper (pid {})", k.pid)).unwrap_or_default();
        let whom = match self.hosts.len() {
            1 => format!("watched by an agent (pid {}){keeper}", household.agent_pid(&first.name)),
            n => {
                let primary = status.primary.as_ref().map_or("nobody yet".to_owned(), ToString::to_string);
                format!("on {}; the primary is {primary}", counted(n, "host"))
            }
        };
        // The primary's host is the one that is lost.
        let stays = self.hosts.iter().find(|host| Some(&host.name) != status.primary.as_ref());
        let mut text = format!(
            "{} ready, {whom}. In another terminal:\n\n  export BIGBROTHER_API={}\n  {program} ps\n",
            counted(list.len(), "zone server"),
            stays.unwrap_or(first).api.address()
        );
        if self.hosts.len() > 1 {
            text.push_str(&format!("  {program} hosts\n"));
            for host in &self.hosts {
                let pid = household.agent_pid(&host.name);
                text.push_str(&format!(
                    "  kill -9 {pid}        # kill the agent of {}; its games play on\n",
                    host.name
                ));
            }
        }
        if let Some((pid, instance)) = list.first().and_then(|i| Some((i.pid?, &i.instance))) {
            text.push_str(&format!("  kill -STOP {pid}        # hang {instance}\n"));
        }
        text.push_str(&format!(
            "  {program} kill-test zone --count 20\n\nCtrl-C stops everything. What happens:\n"
        ));
        Ok(text)
    }

    /// Plays what is due, and says so.
    pub async fn go_on(&mut self, household: &mut Household) -> Result<Vec<String>, Failure> {
        let now = Instant::now();
        let act = std::mem::replace(&mut self.next, Act::Over);
        let (next, told) = match act {
            Act::Hang(at) if at <= now => {
                let next = if self.hosts.len() > 1 { Act::Lose(now + PAUSE) } else { Act::Over };
                (next, vec![self.hang_one().await])
            }
            Act::Lose(at) if at <= now => self.lose_one(household).await,
            Act::Heal(host, since) => self.heal(host, since).await,
            Act::BringBack(host, at) if at <= now => {
                household.bring_back(&host)?;
                (
                    Act::Over,
                    vec![format!("-- {host} is switched on again: it joins, and new instances may go there")],
                )
            }
            waiting => (waiting, Vec::new()),
        };
        self.next = next;
        Ok(told)
    }

    /// Tells a server to hang, and says so.
    async fn hang_one(&self) -> String {
        let list = self.instances().await;
        let ready = list.iter().rev().filter(|i| i.state == "ready");
        let target = ready.filter_map(|i| Some((i, i.ports.get("game")?))).next();
        let Some((instance, port)) = target else {
            return "-- a server was to be hung now, but none is ready".to_owned();
        };
        let sent = UdpSocket::bind("127.0.0.1:0").and_then(|s| s.send_to(b"hang", ("127.0.0.1", port.port)));
        match sent {
            Ok(_) => format!(
                "-- to show you: {} is made to hang now. Its process lives but does nothing any more; after {} ms\n\
                 -- without a heartbeat it is killed and started again",
                instance.instance,
                HANG_TIMEOUT.as_millis()
            ),
            Err(error) => {
                format!("-- {} was to be hung now, but could not be told: {error}", instance.instance)
            }
        }
    }

    /// Kills the primary's host, the worst one to lose.
    async fn lose_one(&self, household: &mut Household) -> (Act, Vec<String>) {
        let mut primary = None;
        for host in &self.hosts {
            let status: Option<StatusView> = host.api.get("/v1/status").await.ok();
            primary = primary.or(status.and_then(|status| status.primary));
        }
        let victim = primary.or_else(|| self.hosts.last().map(|host| host.name.clone()));
        let Some(victim) = victim else { return (Act::Over, Vec::new()) };
        household.lose(&victim);
        let told = format!(
            "-- to show you: the host {victim}, the primary, is lost now: its agent, its keeper and its servers were\n\
             -- killed at once. The others elect a new primary within a second; when nothing was heard of {victim} for\n\
             -- host_timeout (4.5 s), its servers are started elsewhere"
        );
        (Act::Heal(victim, Instant::now()), vec![told])
    }

    async fn heal(&self, host: HostName, since: Instant) -> (Act, Vec<String>) {
        let list = self.instances().await;
        let elsewhere: Vec<InstanceView> = list.into_iter().filter(|i| i.host != host).collect();
        let took = span(since.elapsed().as_secs_f64() * 1_000.0);
        if count_ready(&elsewhere) == self.wanted {
            let told = format!("-- all {} servers run again, {took} after {host} was lost", self.wanted);
            return (Act::BringBack(host, Instant::now() + AWAY), vec![told]);
        }
        if since.elapsed() > LONGEST {
            let ready = count_ready(&elsewhere);
            let told =
                format!("-- only {ready} of {} servers run, {took} after {host} was lost", self.wanted);
            return (Act::BringBack(host, Instant::now()), vec![told]);
        }
        (Act::Heal(host, since), Vec::new())
    }
}

fn count_ready(list: &[InstanceView]) -> usize {
    list.iter().filter(|instance| instance.state == "ready").count()
}
