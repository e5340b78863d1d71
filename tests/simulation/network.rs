//! The network: who reaches whom, how late, how often, and what is lost.

use std::collections::BTreeSet;

pub struct Network {
    /// Nothing goes from the first to the second.
    cuts: BTreeSet<(usize, usize)>,
    /// Until then much is lost, doubled and late.
    pub rough: u64,
    /// From then on nothing goes wrong any more.
    pub calm: u64,
}

impl Network {
    pub fn new(calm: u64) -> Network {
        Network { cuts: BTreeSet::new(), rough: 0, calm }
    }

    pub fn reaches(&self, from: usize, to: usize) -> bool {
        from == to || !self.cuts.contains(&(from, to))
    }

    pub fn heal(&mut self) {
        self.cuts.clear();
    }

    pub fn cut(&mut self, from: usize, to: usize) {
        self.cuts.insert((from, to));
    }

    /// One host loses touch with all: in both directions, or it is only not heard, or only hears nothing.
    pub fn cut_off(&mut self, host: usize, hosts: usize, rng: &mut fastrand::Rng) {
        let (out, back) = rng.choice([(true, true), (true, false), (false, true)]).unwrap_or_default();
        for other in (0..hosts).filter(|other| *other != host) {
            if out {
                self.cuts.insert((host, other));
            }
            if back {
                self.cuts.insert((other, host));
            }
        }
    }

    /// Two halves that do not hear each other.
    pub fn split(&mut self, hosts: usize, rng: &mut fastrand::Rng) {
        let half: Vec<usize> = (0..hosts).filter(|_| rng.bool()).collect();
        self.strand(&half, hosts);
    }

    /// These hear each other, and nobody else.
    pub fn strand(&mut self, island: &[usize], hosts: usize) {
        for other in (0..hosts).filter(|other| !island.contains(other)) {
            self.cuts.extend(island.iter().flat_map(|one| [(*one, other), (other, *one)]));
        }
    }

    /// When the copies of a message arrive.
    pub fn delays(&self, now: u64, rng: &mut fastrand::Rng) -> [Option<u64>; 2] {
        if now >= self.calm {
            return [Some(rng.u64(1..15)), None];
        }
        let (lost, twice, slow) = if now < self.rough { (30, 15, 12) } else { (2, 2, 1) };
        let mut delay = || match rng.u32(0..100) < slow {
            true => rng.u64(100..6_000),
            false => rng.u64(1..40),
        };
        let both = [Some(delay()), Some(delay())];
        match rng.u32(0..100) {
            chance if chance < lost => [None, None],
            chance if chance < lost + twice => both,
            _ => [both[0], None],
        }
    }
}
