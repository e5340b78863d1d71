//! What an epoll event names: a socket of the endpoint in a slot.
//!
//! Slots and places are reused, so an event may name a socket that has just replaced another; reading it
//! finds nothing, which harms nobody. Pure.

use super::MAX_CONNECTIONS;

/// Which socket of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Listener,
    Notify,
    Connection(usize),
}

pub(super) fn of(slot: usize, role: Role) -> u64 {
    let low = match role {
        Role::Listener => 0,
        Role::Notify => 1,
        Role::Connection(at) => 2 + at as u64,
    };
    (slot as u64) << 8 | low
}

pub(super) fn connection(slot: usize, at: usize) -> u64 {
    of(slot, Role::Connection(at))
}

pub(super) fn read(token: u64) -> Option<(usize, Role)> {
    let slot = usize::try_from(token >> 8).ok()?;
    let role = match token & 0xff {
        0 => Role::Listener,
        1 => Role::Notify,
        at => Role::Connection(usize::try_from(at - 2).ok().filter(|at| *at < MAX_CONNECTIONS)?),
    };
    Some((slot, role))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_name_what_they_were_made_of() {
        for role in [Role::Listener, Role::Notify, Role::Connection(0), Role::Connection(MAX_CONNECTIONS - 1)]
        {
            for slot in [0, 1, 700, 1 << 40] {
                assert_eq!(read(of(slot, role)), Some((slot, role)));
            }
        }
        assert_eq!(read(255), None);
    }
}
