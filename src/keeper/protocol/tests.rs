//! The golden bytes.

use super::*;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Compares the bytes with the golden ones, and reads them back.
fn golden<M>(message: &M, bytes: &str)
where
    M: Serialize + for<'de> Deserialize<'de> + PartialEq + std::fmt::Debug,
{
    let packet = encode(message).unwrap();
    assert_eq!(hex(&packet), bytes.replace([' ', '\n'], ""), "{message:?}");
    assert_eq!(decode::<M>(&packet).unwrap(), std::slice::from_ref(message));
}

fn zone() -> InstanceId {
    "zone.3".parse().unwrap()
}

const ZONE: &str = "0600000000000000 7a6f6e652e33";

fn spawn(logs: LogTarget) -> Spawn {
    Spawn {
        run: RunId(7),
        instance: zone(),
        program: "/p".into(),
        args: vec!["a".into()],
        env: vec!["K=v".into()],
        working_dir: "/".into(),
        account: Some(Account { uid: 1, gid: 2, groups: vec![3] }),
        umask: 0o22,
        nice: -5,
        rlimits: vec![(7, 1024)],
        ignore_sigpipe: true,
        limits: vec![("pids.max".into(), "9".into())],
        limits_required: false,
        exclusive: true,
        logs,
        note: vec![0xAA],
    }
}

#[test]
fn requests_have_their_golden_bytes() {
    let run = RunId(7);
    let seven = "0700000000000000";
    golden(&Request::Hello { agent: "1.0".into() }, "01 00000000 0300000000000000 312e30");
    golden(&Request::Ping, "01 01000000");
    golden(&Request::Hold { instance: zone() }, &format!("01 02000000 {ZONE}"));
    golden(&Request::Release { instance: zone() }, &format!("01 03000000 {ZONE}"));
    let signal = Request::Signal { run, signal: 15, to: Target::Group };
    golden(&signal, &format!("01 05000000 {seven} 0f000000 01000000"));
    golden(&Request::Kill { run }, &format!("01 06000000 {seven}"));
    golden(&Request::Acknowledge { run }, &format!("01 07000000 {seven}"));
    golden(&Request::Follow { run, pid: 258 }, &format!("01 08000000 {seven} 02010000"));
    golden(&Request::Note { run, note: vec![1, 2] }, &format!("01 09000000 {seven} 0200000000000000 0102"));
    golden(
        &Request::Limit { run, limits: vec![("f".into(), "v".into())] },
        &format!("01 0a000000 {seven} 0100000000000000 0100000000000000 66 0100000000000000 76"),
    );
    golden(&Request::Fence { deadline_ns: 1 << 40 }, "01 0b000000 0000000000010000");
    golden(&Request::Upgrade { program: "/b".into() }, "01 0c000000 0200000000000000 2f62");
    golden(&Request::Shutdown, "01 0d000000");
    golden(&Request::Logs { run, logs: LogTarget::Null }, &format!("01 0e000000 {seven} 02000000"));
    golden(&Request::Exclusive { run, exclusive: true }, &format!("01 0f000000 {seven} 01"));
    golden(&Request::Revoke { run }, &format!("01 11000000 {seven}"));
}

#[test]
fn a_spawn_has_its_golden_bytes() {
    let head = format!(
        "01 04000000 0700000000000000 {ZONE} 0200000000000000 2f70
         0100000000000000 0100000000000000 61
         0100000000000000 0300000000000000 4b3d76
         0100000000000000 2f
         01 01000000 02000000 0100000000000000 03000000
         12000000 fbffffff
         0100000000000000 07000000 0004000000000000
         01
         0100000000000000 0800000000000000 706964732e6d6178 0100000000000000 39
         00 01"
    );
    let note = "0100000000000000 aa";
    let files = LogTarget::Files { folder: "/l".into(), size: 10, files: 2 };
    for (logs, bytes) in [
        (files, "00000000 0200000000000000 2f6c 0a00000000000000 02000000"),
        (LogTarget::Journald, "01000000"),
        (LogTarget::Null, "02000000"),
    ] {
        golden(&Request::Spawn(Box::new(spawn(logs.clone()))), &format!("{head} {bytes} {note}"));
        let successor = Box::new(spawn(logs));
        let ahead = head.replacen("01 04000000", "01 10000000 0600000000000000", 1);
        golden(&Request::Appoint { run: RunId(6), successor }, &format!("{ahead} {bytes} {note}"));
    }
}

#[test]
fn replies_have_their_golden_bytes() {
    let run = RunId(7);
    let seven = "0700000000000000";
    let full = CgroupSupport::Full { controllers: vec!["cpu".into()] };
    for (cgroups, bytes) in [
        (full, "00000000 0100000000000000 0300000000000000 637075"),
        (CgroupSupport::KillOnly, "01000000"),
        (CgroupSupport::None, "02000000"),
    ] {
        let welcome = Reply::Welcome { keeper: "1".into(), pid: 5, cgroups, fence_deadline_ns: 9 };
        golden(&welcome, &format!("01 00000000 0100000000000000 31 05000000 {bytes} 0900000000000000"));
    }
    golden(&Reply::Held { instance: zone() }, &format!("01 01000000 {ZONE}"));
    golden(
        &Reply::Datagram { instance: zone(), pid: 5, data: vec![0x41] },
        &format!("01 03000000 {ZONE} 05000000 0100000000000000 41"),
    );
    golden(&Reply::Listed { strays: vec![zone()] }, &format!("01 04000000 0100000000000000 {ZONE}"));
    golden(&Reply::Spawned { run, pid: 5 }, &format!("01 05000000 {seven} 05000000"));
    let failed = Reply::SpawnFailed { run, step: SpawnStep::Exec, errno: 2 };
    golden(&failed, &format!("01 06000000 {seven} 0d000000 02000000"));
    golden(&Reply::SpawnStuck { run }, &format!("01 07000000 {seven}"));
    golden(&Reply::Exited { run, end: End::Code(3) }, &format!("01 08000000 {seven} 00000000 03000000"));
    let end = End::Signal { signal: 11, core: true };
    let gone = Reply::Gone { run, end, fenced: true };
    golden(&gone, &format!("01 09000000 {seven} 01000000 0b000000 01 01"));
    golden(
        &Reply::Unenforced { run, files: vec!["f".into()] },
        &format!("01 0a000000 {seven} 0100000000000000 0100000000000000 66"),
    );
    let refused = Reply::Refused { run: Some(run), reason: "r".into() };
    golden(&refused, &format!("01 0b000000 01 {seven} 0100000000000000 72"));
    golden(&Reply::LogBytes { kept: 1, dropped: 2 }, "01 0c000000 0100000000000000 0200000000000000");
    let succeeded = Reply::Succeeded { run, end, ago_ns: 9, by: RunId(8) };
    golden(
        &succeeded,
        &format!("01 0d000000 {seven} 01000000 0b000000 01 0900000000000000 0800000000000000"),
    );
}

#[test]
fn a_run_has_its_golden_bytes_in_every_stage() {
    for (stage, bytes) in [
        (Stage::Spawning, "00000000"),
        (Stage::Running, "01000000"),
        (Stage::Exited(End::Unknown), "02000000 02000000"),
        (Stage::Gone { end: End::Code(1), fenced: false }, "03000000 00000000 01000000 00"),
        (Stage::SpawnFailed { step: SpawnStep::Busy, errno: 16 }, "04000000 00000000 10000000"),
    ] {
        let record = RunRecord {
            run: RunId(7),
            instance: zone(),
            pid: 5,
            spawned_ns: 8,
            stage,
            exclusive: true,
            note: vec![0xAA],
        };
        let tail = "01 0100000000000000 aa";
        let head = format!("01 02000000 0700000000000000 {ZONE} 05000000 0800000000000000");
        golden(&Reply::Run(record), &format!("{head} {bytes} {tail}"));
    }
}

#[test]
fn what_is_no_message_is_told_apart() {
    assert!(matches!(decode::<Request>(&[]), Err(DecodeError::Empty)));
    assert!(matches!(decode::<Request>(&[2, 1, 0, 0, 0]), Err(DecodeError::Version(2))));
    assert!(matches!(decode::<Request>(&[1, 1, 0, 0]), Err(DecodeError::Malformed(_))));
    assert!(matches!(decode::<Request>(&[1, 1, 0, 0, 0, 9]), Err(DecodeError::Malformed(_))));
    assert!(matches!(decode::<Request>(&[1]), Err(DecodeError::Empty)));
    assert!(matches!(decode::<Request>(&vec![1; MAX_PACKET + 1]), Err(DecodeError::TooLarge(_))));
    // A length that lies does not allocate.
    let lie = [1, 0, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 127];
    assert!(matches!(decode::<Request>(&lie), Err(DecodeError::Malformed(_))));
    let note = Request::Note { run: RunId(1), note: vec![0; MAX_PACKET] };
    assert!(matches!(encode(&note), Err(EncodeError::TooLarge(_))));
}

#[test]
fn messages_are_gathered_in_order_while_there_is_room() {
    let acknowledge = Request::Acknowledge { run: RunId(7) };
    let mut packet = encode(&acknowledge).unwrap();
    assert!(gather(&mut packet, &encode(&Request::Ping).unwrap()));
    assert_eq!(decode::<Request>(&packet).unwrap(), [acknowledge, Request::Ping]);
    let before = packet.clone();
    let large = Request::Note { run: RunId(1), note: vec![0; MAX_GATHERED] };
    assert!(!gather(&mut packet, &encode(&large).unwrap()));
    assert_eq!(packet, before);
}
