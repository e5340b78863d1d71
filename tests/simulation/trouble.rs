//! What goes wrong, and when. Each life has a weather of its own: some kinds of trouble and a pace. Where everything
//! goes wrong all the time nothing is ever declared down, since too many are silent at once.

use crate::faults::Fault;
use crate::world::World;

#[derive(Clone, Copy, Debug)]
enum Trouble {
    Power,
    PowerOfAll,
    AgentDies,
    AgentDiesBriefly,
    AgentStops,
    KeeperDies,
    RunEnds,
    CutOff,
    CutOneWay,
    Split,
    Rough,
    ClockSteps,
    DiskIsSlow,
    ProgramIsMissing,
    PrimaryCutOff,
    /// The primary and another host hear each other and nobody else.
    PrimaryOnAnIsland,
    /// The primary and the hosts that are no peers hear each other, and so do the other peers.
    PrimaryWithoutPeers,
    PrimaryStops,
    PrimaryDies,
}

use Trouble::*;

const ALL: [Trouble; 19] = [
    Power,
    PowerOfAll,
    AgentDies,
    AgentDiesBriefly,
    AgentStops,
    KeeperDies,
    RunEnds,
    CutOff,
    CutOneWay,
    Split,
    Rough,
    ClockSteps,
    DiskIsSlow,
    ProgramIsMissing,
    PrimaryCutOff,
    PrimaryOnAnIsland,
    PrimaryWithoutPeers,
    PrimaryStops,
    PrimaryDies,
];

pub struct Weather {
    kinds: Vec<Trouble>,
    /// The longest time between two troubles, milliseconds.
    pace: u64,
    /// The same for what operators ask.
    pub bustle: u64,
}

impl Weather {
    /// Any; for a planted fault one in which it does harm soon.
    pub fn any(fault: Fault, rng: &mut fastrand::Rng) -> Weather {
        let (kinds, pace, bustle): (&[Trouble], u64, u64) = match fault {
            Fault::StaleStart => (&[AgentDiesBriefly], 1_000, 800),
            Fault::NoReadIndex | Fault::HoldTooLong => (&[PrimaryCutOff, PrimaryOnAnIsland], 15_000, 3_000),
            Fault::GivenUpForGood => (&[PrimaryWithoutPeers], 14_000, 400),
            Fault::NoWait => (&[PrimaryDies, PrimaryStops, PrimaryCutOff], 5_000, 3_000),
            Fault::FenceIgnored => (&[AgentDies, AgentStops], 8_000, 3_000),
            Fault::OldRunsGoOn => (&[CutOff], 15_000, 3_000),
            Fault::EagerRelease => (&[RunEnds], 300, 400),
            Fault::ClaimsStay => (&[RunEnds], 2_000, 800),
            Fault::NothingForgotten => (&[ClockSteps], 2_000, 800),
            _ => return Weather::of_any_kind(rng),
        };
        Weather { kinds: kinds.to_vec(), pace, bustle }
    }

    fn of_any_kind(rng: &mut fastrand::Rng) -> Weather {
        // Few kinds now and then, after which a lost host is declared down; or many all the time.
        let (share, paces) = match rng.bool() {
            true => (rng.u32(5..15), [6_000, 12_000]),
            false => (rng.u32(15..60), [800, 3_000]),
        };
        let mut kinds: Vec<Trouble> = ALL.into_iter().filter(|_| rng.u32(0..100) < share).collect();
        if kinds.is_empty() {
            kinds.extend([PrimaryCutOff, CutOff, Power]);
        }
        let pace = rng.choice(paces).unwrap_or_default();
        Weather { kinds, pace, bustle: rng.choice([800, 3_000, 8_000]).unwrap_or_default() }
    }
}

impl World {
    /// One misfortune. Gives the time until the next.
    pub fn trouble(&mut self) -> u64 {
        if let Some(kind) = self.rng.choice(&self.weather.kinds).copied() {
            match kind {
                PrimaryCutOff | PrimaryOnAnIsland | PrimaryWithoutPeers | PrimaryStops | PrimaryDies => {
                    self.strike_primary(kind);
                }
                CutOff | CutOneWay | Split | Rough => self.strike_network(kind),
                _ => self.strike_host(kind),
            }
        }
        self.rng.u64(self.weather.pace / 10..self.weather.pace)
    }

    fn strike_host(&mut self, kind: Trouble) {
        let (now, fault) = (self.now, self.fault);
        let span = self.rng.u64(200..20_000);
        let any = self.rng.usize(..self.sites.len());
        let site = &mut self.sites[any];
        match kind {
            Power => site.lose_power(now + span, now, fault),
            PowerOfAll => {
                for site in &mut self.sites {
                    site.lose_power(now + self.rng.u64(200..6_000), now, fault);
                }
            }
            AgentDies => site.lose_agent(now + span, now, fault),
            AgentDiesBriefly => site.lose_agent(now + span / 20, now, fault),
            AgentStops if site.agent.is_some() => site.stalled = now + span,
            KeeperDies => site.machine.keeper.die(now, &mut self.rng),
            RunEnds => site.machine.keeper.crash(now, &mut self.rng),
            // Now and then so far that things are forgotten.
            ClockSteps => {
                let days = if self.rng.u32(0..8) == 0 { 8 * 86_400_000 } else { 0 };
                site.machine.wrong_ms = days + self.rng.u64(0..7_200_000);
            }
            DiskIsSlow => site.slow = now + span,
            ProgramIsMissing => {
                let lacks = site.machine.keeper.lacks;
                site.machine.keeper.lacks = if lacks.is_some() { None } else { Some('f') };
            }
            _ => {}
        }
    }

    fn strike_network(&mut self, kind: Trouble) {
        let hosts = self.sites.len();
        let (any, other) = (self.rng.usize(..hosts), self.rng.usize(..hosts));
        match kind {
            CutOff => self.network.cut_off(any, hosts, &mut self.rng),
            CutOneWay => self.network.cut(any, other),
            Split => self.network.split(hosts, &mut self.rng),
            _ => self.network.rough = self.now + self.rng.u64(1_000..20_000),
        }
        self.heal_later();
    }

    fn strike_primary(&mut self, kind: Trouble) {
        let (now, hosts) = (self.now, self.sites.len());
        // One that is cut off may be there beside it.
        let terms =
            self.sites.iter().enumerate().filter_map(|(n, site)| Some((site.primary.as_ref()?.term, n)));
        let Some((_, at)) = terms.max() else { return };
        let span = self.rng.u64(200..20_000);
        match kind {
            PrimaryCutOff => self.network.cut_off(at, hosts, &mut self.rng),
            PrimaryOnAnIsland => {
                let other = self.rng.usize(..hosts);
                self.network.strand(&[at, other], hosts);
            }
            PrimaryWithoutPeers => {
                let island: Vec<usize> = (self.peers..hosts).chain([at]).collect();
                self.network.strand(&island, hosts);
            }
            PrimaryStops => self.sites[at].stalled = now + span,
            _ => self.sites[at].lose_agent(now + span / 20, now, self.fault),
        }
        self.heal_later();
    }

    /// All faults are over.
    pub fn heal(&mut self) {
        self.network.heal();
        self.network.calm = self.now;
        for site in &mut self.sites {
            (site.boots, site.agent_comes, site.stalled, site.slow) = (0, 0, 0, 0);
            site.machine.keeper.lacks = None;
        }
    }
}
