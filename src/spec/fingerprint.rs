//! The spec hash: whether a change of a process needs a restart of its instances.
//!
//! Pure. The plan stamps it on placements; the host core compares it with what runs. The bytes are
//! canonical and versioned (`VERSION` first, then each field length-prefixed in the order below), so
//! that two builds of the program agree; the golden test holds them.

use serde::{Deserialize, Serialize};

use super::Process;

/// Bumped when the bytes below change their meaning.
const VERSION: u8 = 1;

/// The FNV-1a hash (64 bit; Fowler, Noll and Vo) of what cannot be changed in a living process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SpecHash(pub u64);

impl std::fmt::Display for SpecHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Hashes the parts of a process that need a restart: command, env, user, group, working_dir, ports,
/// umask, nice, SIGPIPE, resource limits of the process itself and `build`.
pub fn spec_hash(process: &Process) -> SpecHash {
    SpecHash(fnv1a(&canonical_bytes(process)))
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

fn canonical_bytes(process: &Process) -> Vec<u8> {
    let mut out = vec![VERSION];
    list(&mut out, process.command.iter().map(String::as_str));
    list(&mut out, process.env.iter().flat_map(|(k, v)| [k.as_str(), v.as_str()]));
    option(&mut out, process.user.as_deref());
    option(&mut out, process.group.as_deref());
    option(&mut out, process.working_dir.as_deref());
    count(&mut out, process.ports.len());
    for (name, request) in &process.ports {
        text(&mut out, name);
        text(&mut out, &request.protocol.to_string());
        out.extend(request.fixed.unwrap_or(0).to_le_bytes());
    }
    out.extend(process.umask.to_le_bytes());
    out.extend(process.nice.to_le_bytes());
    out.push(u8::from(process.ignore_sigpipe));
    for limit in [process.limits.files, process.limits.core] {
        out.push(u8::from(limit.is_some()));
        out.extend(limit.unwrap_or(0).to_le_bytes());
    }
    option(&mut out, process.build.as_deref());
    out
}

fn count(out: &mut Vec<u8>, n: usize) {
    out.extend((n as u64).to_le_bytes());
}

fn text(out: &mut Vec<u8>, value: &str) {
    count(out, value.len());
    out.extend(value.as_bytes());
}

fn option(out: &mut Vec<u8>, value: Option<&str>) {
    out.push(u8::from(value.is_some()));
    text(out, value.unwrap_or(""));
}

fn list<'a>(out: &mut Vec<u8>, items: impl Iterator<Item = &'a str>) {
    let items: Vec<&str> = items.collect();
    count(out, items.len());
    for item in items {
        text(out, item);
    }
}
