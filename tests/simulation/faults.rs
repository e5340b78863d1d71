//! What is broken on purpose, so that an invariant is seen to catch it.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// Neither keeper nor agent kills at the deadline.
    FenceIgnored,
    /// The deadline counts from the answer, not from the report.
    HoldTooLong,
    /// Confirmed without a round with a quorum.
    NoReadIndex,
    /// A new primary takes silence from before its time for silence.
    NoWait,
    /// A primary judges without a quorum, and is certain in all its terms of whom it gave up in one.
    GivenUpForGood,
    /// A claim is given back while the run ends.
    EagerRelease,
    /// A claim is never given back.
    NoRelease,
    /// A new agent starts exclusive instances by any state that it finds on its disk.
    StaleStart,
    /// An agent loses some of what it has to tell.
    EventsLost,
    /// The list of what runs adds and never takes away.
    ListOnlyAdds,
    /// HostDown leaves the lost host's entries.
    LostHostListed,
    /// HostDown leaves the lost host's placements.
    LostHostPlaced,
    /// The plan does not look whether a host is drained.
    DrainIgnored,
    /// The plan does not look how much a host may carry.
    RoomIgnored,
    /// The plan forgets its last change.
    HalfAPlan,
    /// A host that joins again gets its old incarnation.
    OldIncarnation,
    /// The next leader of a process gets the token of the one before.
    OldToken,
    /// A placement begins at the first generation again.
    OldGeneration,
    /// Nothing that was remembered is ever forgotten.
    NothingForgotten,
    /// Claims outlive their instances and hosts.
    ClaimsStay,
    /// A peer tells that it has written what it has not.
    DiskLies,
    /// A peer does not write down whom it gave its vote.
    VoteForgotten,
    /// A peer that comes back applies its last entry again.
    AppliedTwice,
    /// A host that is back goes on with what it ran.
    OldRunsGoOn,
}
