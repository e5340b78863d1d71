//! Random faults, one after the other, by a seed.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::fleet::{Fleet, HOSTS, send};
use crate::lan::Cut;
use crate::witness;

/// Numbers from a seed (splitmix64, Steele et al. 2014).
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }

    fn host(&mut self) -> &'static str {
        HOSTS[self.below(5) as usize]
    }

    /// Mostly short, sometimes longer than `host_timeout`.
    fn span(&mut self) -> Duration {
        match self.below(5) {
            0 => Duration::from_millis(5_000 + self.below(2_500)),
            _ => Duration::from_millis(50 + self.below(1_500)),
        }
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}: {text:?}")))
}

fn round(fleet: &mut Fleet, chance: &mut Chance) -> String {
    let (host, span) = (chance.host(), chance.span());
    match chance.below(8) {
        0 | 1 => {
            send(fleet.agent(host), Signal::SIGKILL);
            format!("the agent of {host} was killed")
        }
        2 => {
            fleet.keeper(host).into_iter().for_each(|keeper| send(keeper, Signal::SIGKILL));
            format!("the keeper of {host} was killed")
        }
        3 => {
            let both = [Some(fleet.agent(host)), fleet.keeper(host)];
            both.into_iter().flatten().for_each(|pid| send(pid, Signal::SIGKILL));
            format!("agent and keeper of {host} were killed")
        }
        4 => {
            let whom = [Some(fleet.agent(host)), fleet.keeper(host)][chance.below(2) as usize];
            whom.into_iter().for_each(|pid| send(pid, Signal::SIGSTOP));
            fleet.pass(span);
            whom.into_iter().for_each(|pid| send(pid, Signal::SIGCONT));
            format!("agent or keeper of {host} stood still for {span:?}")
        }
        5 => {
            fleet.switch_off(host);
            fleet.pass(span);
            fleet.switch_on(host);
            format!("{host} was switched off for {span:?}")
        }
        _ => {
            let cut = [Cut::Both, Cut::Sends, Cut::Hears][chance.below(3) as usize];
            fleet.lan.cut(host, cut);
            if chance.below(3) == 0 {
                let other = chance.host();
                fleet.lan.cut(other, cut);
            }
            fleet.pass(span);
            fleet.lan.heal();
            format!("{host} (perhaps another, too) was cut off ({cut:?}) for {span:?}")
        }
    }
}

#[test]
fn random_rounds_end_as_declared() {
    let (rounds, seed) = (number("BIGBROTHER_ROUNDS", 50), number("BIGBROTHER_SEED", 1));
    eprintln!("BIGBROTHER_SEED={seed} BIGBROTHER_ROUNDS={rounds}");
    let mut chance = Chance(seed);
    let mut fleet = Fleet::start();
    for number in 1..=rounds {
        let what = round(&mut fleet, &mut chance);
        fleet.settle(&format!("round {number} of seed {seed}: {what}"));
    }
    assert!(witness::runs(&fleet.shared()) > 3, "nothing exclusive was ever moved or restarted");
}
