//! The book by itself, with ports of this machine.

use super::*;

fn id(text: &str) -> InstanceId {
    text.parse().unwrap()
}

fn udp() -> BTreeMap<String, PortRequest> {
    [("game".to_owned(), PortRequest { protocol: Protocol::Udp, fixed: None })].into()
}

#[tokio::test]
async fn ports_stay_with_their_instance_over_restarts_and_run_numbers_never_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let (mut book, writer) = Book::open(dir.path(), (21000, 21999)).unwrap();
    let task = tokio::spawn(writer.run(Arc::new(Metrics::new()), oneshot::channel().0));
    let first = book.assign(&id("zone.0"), &udp(), false).unwrap();
    let second = book.assign(&id("zone.1"), &udp(), false).unwrap();
    assert_ne!(first, second);
    assert_eq!(book.assign(&id("zone.0"), &udp(), false).unwrap(), first);
    book.use_run(RUN_BLOCK * 3);
    // Of a run that an agent before has started; what the book knows itself it knows better.
    book.learn(&id("zone.2"), [("game".to_owned(), (Protocol::Udp, 21002))].into());
    book.learn(&id("zone.0"), [("game".to_owned(), (Protocol::Udp, 21003))].into());
    drop(book);
    task.await.unwrap();
    let (mut book, _writer) = Book::open(dir.path(), (21000, 21999)).unwrap();
    assert_eq!(book.assign(&id("zone.1"), &udp(), false).unwrap(), second);
    assert_eq!(book.ports(&id("zone.2"))["game"], (Protocol::Udp, 21002));
    assert_eq!(book.ports(&id("zone.0")), first);
    assert!(book.last_run() >= RUN_BLOCK * 3, "{}", book.last_run());
}

#[tokio::test]
async fn run_numbers_are_reserved_before_the_first_is_given_out() {
    let dir = tempfile::tempdir().unwrap();
    for life in 0..3 {
        let (book, writer) = Book::open(dir.path(), (21000, 21999)).unwrap();
        assert_eq!(book.last_run(), life * RUN_BLOCK);
        let (reserved, told) = oneshot::channel();
        let task = tokio::spawn(writer.run(Arc::new(Metrics::new()), reserved));
        told.await.unwrap();
        task.abort();
    }
    let gone = dir.path().join("gone");
    let (_book, writer) = Book::open(&gone, (21000, 21999)).unwrap();
    let (reserved, told) = oneshot::channel();
    let _task = tokio::spawn(writer.run(Arc::new(Metrics::new()), reserved));
    told.await.expect("a disk that takes nothing holds up nobody");
}

#[test]
fn a_full_range_and_foreign_holders_are_respected() {
    let dir = tempfile::tempdir().unwrap();
    // Not one of those that the kernel gives to whoever asks for any: it is to be free again.
    let holder = (23_000..24_000).find_map(|n| UdpSocket::bind((Ipv4Addr::LOCALHOST, n)).ok()).unwrap();
    let number = holder.local_addr().unwrap().port();
    let (mut book, _writer) = Book::open(dir.path(), (number, number)).unwrap();
    let error = book.assign(&id("zone.0"), &udp(), false).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("no free udp port in {number}-{number} for ports.game; widen `host.ports`")
    );
    drop(holder);
    // Which is seen a little later.
    let deadline = Instant::now() + 10 * FULL;
    let ports = loop {
        match book.assign(&id("zone.0"), &udp(), false) {
            Ok(ports) => break ports,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::sleep(FULL / 20);
    };
    assert_eq!(ports["game"], (Protocol::Udp, number));
    assert!(book.assign(&id("zone.1"), &udp(), false).is_err());
    book.release(&id("zone.0"));
    book.keep_off([(Protocol::Udp, number)].into());
    assert!(book.assign(&id("zone.1"), &udp(), false).is_err());
    book.keep_off(BTreeSet::new());
    assert!(book.assign(&id("zone.1"), &udp(), false).is_ok());
}

#[test]
fn a_port_that_somebody_took_while_its_instance_was_down_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let (mut book, _writer) = Book::open(dir.path(), (22000, 22999)).unwrap();
    let first = book.assign(&id("zone.0"), &udp(), true).unwrap();
    assert_eq!(book.assign(&id("zone.0"), &udp(), true).unwrap(), first, "nobody has it");
    let holder = UdpSocket::bind((Ipv4Addr::LOCALHOST, first["game"].1)).unwrap();
    assert_eq!(book.assign(&id("zone.0"), &udp(), false).unwrap(), first, "a restart at once asks nobody");
    let second = book.assign(&id("zone.0"), &udp(), true).unwrap();
    assert_ne!(second, first);
    drop(holder);
    assert_eq!(book.assign(&id("zone.0"), &udp(), true).unwrap(), second, "and that it keeps");
    let number = first["game"].1;
    let fixed = [("game".to_owned(), PortRequest { protocol: Protocol::Udp, fixed: Some(number) })].into();
    let _holder = UdpSocket::bind((Ipv4Addr::LOCALHOST, number)).unwrap();
    assert_eq!(book.assign(&id("zone.2"), &fixed, true).unwrap(), first, "whoever wants this one gets it");
}

#[test]
fn thousands_that_find_no_port_cost_no_search_each_and_what_is_given_back_is_found_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (mut book, mut writer) = Book::open(dir.path(), (24_000, 27_999)).unwrap();
    writer.changes.mark_unchanged();
    let pair: BTreeMap<String, PortRequest> = [udp(), udp()]
        .into_iter()
        .zip(["game", "query"])
        .map(|(ports, name)| (name.to_owned(), ports["game"]))
        .collect();
    let began = Instant::now();
    let got: Vec<InstanceId> = (0..20_000)
        .map(|n| id(&format!("zone.{n}")))
        .filter(|id| book.assign(id, &udp(), false).is_ok())
        .collect();
    assert!((3_000..=4_000).contains(&got.len()), "{}", got.len());
    // One port is left, which is none for whoever needs two; for whoever needs one it is.
    book.release(&got[7]);
    assert!((0..20_000).all(|n| book.assign(&id(&format!("pair.{n}")), &pair, false).is_err()));
    let took = began.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(book.assign(&id("late.0"), &udp(), false).is_ok());
    assert!(!writer.changes.has_changed().unwrap(), "not each by itself");
    book.publish();
    assert!(writer.changes.has_changed().unwrap());
}
