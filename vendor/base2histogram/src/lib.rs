//! What openraft links of `base2histogram` when its feature `runtime-stats` is off.
//!
//! openraft records batch sizes and latencies in some twenty histograms, and reads them with that feature only. The
//! real crate lays out the tables of all sixteen bucket widths with the first histogram: 26 MiB in every agent, for
//! figures that nobody can see. Here a histogram counts its samples and keeps no more. With `runtime-stats` on,
//! openraft asks for more than there is here and does not compile: then take the real crate back.
//!
//! Owns nothing else, and goes when the real one makes only the tables that are used. Called by openraft only.

use std::fmt;
use std::marker::PhantomData;

/// How many samples there were.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    samples: u64,
    slots: PhantomData<T>,
}

impl<T> Histogram<T> {
    /// One without samples.
    #[expect(clippy::new_without_default, reason = "openraft makes them by name")]
    pub fn new() -> Self {
        Histogram { samples: 0, slots: PhantomData }
    }

    /// Counts a sample; its value is not kept.
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Counts samples; their value is not kept.
    pub fn record_n(&mut self, _value: u64, samples: u64) {
        self.samples += samples;
    }

    /// The count; percentiles are 0.
    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats { samples: self.samples, ..PercentileStats::default() }
    }
}

/// What would be read of a histogram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PercentileStats {
    /// How many samples there were.
    pub samples: u64,
    /// Always 0.
    pub p50: u64,
    /// Always 0.
    pub p90: u64,
    /// Always 0.
    pub p99: u64,
    /// Always 0.
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} samples", self.samples)
    }
}

/// What would be drawn of histograms.
#[derive(Clone, Debug, Default)]
pub struct AsciiChart;

impl AsciiChart {
    /// An empty one.
    pub fn new() -> Self {
        AsciiChart
    }

    /// Draws nothing of it.
    #[expect(clippy::should_implement_trait, reason = "the name that openraft calls")]
    pub fn add(self, _name: &str, _histogram: Histogram) -> Self {
        self
    }
}
