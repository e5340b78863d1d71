//! What the fence lets a host want.

use super::stories::NATIVE;
use super::*;
use crate::state::{Command, Envelope, HostFacts, State};

#[test]
fn by_a_state_from_before_the_join_what_lives_goes_on_and_nothing_starts() {
    let rig = Rig::ready(NATIVE);
    let mut fence = Fence::new("alpha".parse().unwrap(), 0);
    let left = |fence: &Fence, state: &State| {
        let both = [zone(), "zone.1".parse().unwrap()];
        let mut wants = both.into_iter().map(|id| (id, rig.want.clone())).collect();
        fence.hold_back(&mut wants, state, &rig.host);
        wants.keys().map(ToString::to_string).collect::<Vec<_>>()
    };
    let mut state = State::default();
    assert_eq!(left(&fence, &state), ["zone.0", "zone.1"], "it has not joined");
    fence.joined(1);
    assert_eq!(left(&fence, &state), ["zone.0"], "zone.1 may be elsewhere by now");
    let join = Command::JoinHost { host: "alpha".parse().unwrap(), facts: HostFacts::default() };
    state.apply(&Envelope { stamp_ms: 1, command: join }).unwrap();
    assert_eq!(left(&fence, &state), ["zone.0", "zone.1"]);
}
