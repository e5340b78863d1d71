//! What goes wrong, and when.

use crate::world::World;

impl World {
    /// One misfortune.
    pub fn trouble(&mut self) {
        let (now, hosts, fault) = (self.now, self.sites.len(), self.fault);
        let any = self.rng.usize(..hosts);
        let span = self.rng.u64(200..20_000);
        match self.rng.u32(0..26) {
            0 | 1 => self.sites[any].lose_power(now + span, now, fault),
            2 | 3 => self.sites[any].lose_agent(now + span / 2, now, fault),
            4 | 5 if self.sites[any].agent.is_some() => self.sites[any].stalled = now + span,
            6 | 7 => self.sites[any].machine.keeper.die(now, &mut self.rng),
            8 | 9 => self.network.cut_off(any, hosts, &mut self.rng),
            10 => {
                let other = self.rng.usize(..hosts);
                self.network.cut(any, other);
            }
            11..=13 => self.network.heal(),
            14 | 15 => self.sites[any].machine.keeper.crash(now, &mut self.rng),
            16 => self.step_clock(any),
            17 => self.sites[any].slow = now + span,
            18 | 19 => self.strike_the_primary(),
            20 => self.network.split(hosts, &mut self.rng),
            21 => self.network.rough = now + span,
            22 if self.rng.u32(0..4) == 0 => {
                for site in &mut self.sites {
                    let boots = now + self.rng.u64(200..6_000);
                    site.lose_power(boots, now, fault);
                }
            }
            23 => {
                let keeper = &mut self.sites[any].machine.keeper;
                keeper.lacks = if keeper.lacks.is_some() { None } else { Some('f') };
            }
            _ => {}
        }
    }

    /// The wall clock of a machine jumps; now and then so far that things are forgotten.
    fn step_clock(&mut self, any: usize) {
        let days = if self.rng.u32(0..8) == 0 { 8 * 86_400_000 } else { 0 };
        self.sites[any].machine.wrong_ms = days + self.rng.u64(0..7_200_000);
    }

    fn strike_the_primary(&mut self) {
        let (now, hosts) = (self.now, self.sites.len());
        let Some(at) = self.sites.iter().position(|site| site.primary.is_some()) else { return };
        match self.rng.u32(0..3) {
            0 => self.network.cut_off(at, hosts, &mut self.rng),
            1 => self.sites[at].stalled = now + self.rng.u64(500..15_000),
            _ => self.sites[at].lose_agent(now + 300, now, self.fault),
        }
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
