//! The desk, with hosts and a machine that the test plays.

use super::*;
use crate::cluster::session::message::{Place, open};
use crate::cluster::session::trail::{Recorder, Step, trail};
use crate::cluster::wire::decode;
use crate::state::State;

fn name(text: &str) -> HostName {
    text.parse().unwrap()
}

fn at(index: u64) -> Place {
    Place { index, term: 1 }
}

/// A desk, what it knows, and who changes that.
struct Office {
    desk: Desk,
    recorder: Recorder,
    standing: watch::Sender<Standing>,
    members: watch::Sender<Members>,
    outlook: Outlook,
}

fn office() -> Office {
    let (recorder, reader) = trail();
    let (standing, standings) = watch::channel(Standing::default());
    let peers = vec![(name("alpha"), "a:1".to_owned())];
    let (members, known) = watch::channel(Members { at: 3, peers });
    let outlook = Outlook { history: Some(7), standing: standings, members: known };
    Office { desk: Desk::new(reader), recorder, standing, members, outlook }
}

impl Office {
    fn attach(&self, host: &str) -> u64 {
        let asked = Attach { incarnation: 0, history: None, most: u64::MAX };
        match self.desk.attach(&name(host), &asked, &self.outlook) {
            Admission::Admitted { history: 7, session, .. } => session,
            other => panic!("{other:?}"),
        }
    }

    async fn ask(&self, host: &str, asked: &Follow) -> (Followed, Vec<u8>) {
        let body = self.desk.follow(&name(host), asked, &self.outlook).await.unwrap();
        let (head, raw) = open(&body).unwrap();
        (head, raw.to_vec())
    }
}

fn follow(session: u64, have: Place, part: Option<(Place, u64)>) -> Follow {
    Follow { session, history: 7, have, sight: Sight::default(), members: 3, part }
}

/// A state of about so many bytes.
fn large(bytes: usize, index: u64) -> Arc<State> {
    let args = [("note".to_owned(), "x".repeat(bytes))].into();
    let launch = crate::state::Launch { args, key: None, at_ms: 1 };
    let launches = [("dungeon.1".parse().unwrap(), launch)].into();
    Arc::new(State { index, launches, ..State::default() })
}

#[tokio::test]
async fn whoever_waits_is_told_of_what_happens() {
    let office = office();
    let session = office.attach("delta");
    let asked = follow(session, Place::default(), None);
    let (waiting, told) = tokio::join!(office.ask("delta", &asked), async {
        tokio::task::yield_now().await;
        let step = Step { place: at(1), envelope: Some(b"one".to_vec().into()) };
        office.recorder.extend(vec![step, Step { place: at(2), envelope: None }], Arc::default());
    });
    let ((head, raw), ()) = (waiting, told);
    assert_eq!((head.news, raw.as_slice()), (News::Changes { to: at(2), count: 1 }, &b"one"[..]));
    assert_eq!((head.members, head.sight), (None, Sight::default()));
    let asked = follow(session, at(2), None);
    let ((head, _), ()) = tokio::join!(office.ask("delta", &asked), async {
        tokio::task::yield_now().await;
        office.standing.send_modify(|standing| standing.index = 2);
        tokio::task::yield_now().await;
        office.standing.send_modify(|standing| standing.term = 4);
    });
    assert_eq!((head.news, head.sight.term), (News::Nothing, 4));
    let asked = Follow { sight: Sight { term: 4, ..Sight::default() }, ..asked };
    let ((head, _), ()) = tokio::join!(office.ask("delta", &asked), async {
        tokio::task::yield_now().await;
        office.members.send_modify(|members| members.at = 9);
    });
    assert_eq!(head.members.map(|members| members.at), Some(9));
}

#[tokio::test]
async fn a_whole_state_is_encoded_once_for_all_and_goes_on_although_a_newer_one_was_made() {
    let office = office();
    let (first, second) = (large(5 * ANSWER / 2, 5), large(10, 90));
    office.recorder.begin_anew(at(5), first.clone());
    let (delta, epsilon) = (office.attach("delta"), office.attach("epsilon"));
    let (head, mut bytes) = office.ask("delta", &follow(delta, Place::default(), None)).await;
    let News::Part { of, total, offset: 0 } = head.news else { panic!("{head:?}") };
    assert_eq!((of, bytes.len()), (at(5), ANSWER));
    assert!(total > 2 * ANSWER as u64, "{total}");
    let step = Step { place: at(6), envelope: None };
    office.recorder.extend(vec![step], first.clone());
    // Who comes now goes on from the same place: the trail reaches it.
    let (head, _) = office.ask("epsilon", &follow(epsilon, Place::default(), None)).await;
    assert!(matches!(head.news, News::Part { of, .. } if of == at(5)), "{head:?}");
    // The trail is at an end: who comes now gets a newer one.
    office.recorder.begin_anew(at(90), second.clone());
    let (head, raw) = office.ask("epsilon", &follow(epsilon, Place::default(), None)).await;
    assert!(matches!(head.news, News::Part { of, .. } if of == at(90)), "{head:?}");
    assert_eq!(decode::<State>(&raw).unwrap(), *second);
    while (bytes.len() as u64) < total {
        let asked = follow(delta, Place::default(), Some((of, bytes.len() as u64)));
        let (head, raw) = office.ask("delta", &asked).await;
        assert_eq!(head.news, News::Part { of, total, offset: bytes.len() as u64 });
        bytes.extend(raw);
    }
    assert_eq!(decode::<State>(&bytes).unwrap(), *first);
    // A part of what is not here any more: from the beginning.
    let (head, _) = office.ask("delta", &follow(delta, Place::default(), Some((at(4), 10)))).await;
    assert!(matches!(head.news, News::Part { of, offset: 0, .. } if of == at(90)), "{head:?}");
}

#[tokio::test]
async fn who_does_not_belong_here_is_sent_away() {
    let office = office();
    let (desk, host) = (&office.desk, name("delta"));
    let asked = |history, most| Attach { incarnation: 0, history, most };
    let other = desk.attach(&host, &asked(Some(8), 9), &office.outlook);
    assert!(matches!(other, Admission::Unfit(why) if why.contains("another founding")));
    office.attach("beta");
    office.attach("gamma");
    assert_eq!(desk.attach(&host, &asked(None, 1), &office.outlook), Admission::Crowded { hosts: 2 });
    // Whoever is here already takes nobody's place.
    let again = desk.attach(&name("beta"), &asked(Some(7), 0), &office.outlook);
    assert!(matches!(again, Admission::Admitted { .. }));
    assert_eq!(desk.load(&office.outlook).hosts, 2);
    let (head, _) = office.ask("beta", &follow(1, Place::default(), None)).await;
    assert_eq!(head.news, News::Gone);
    office.standing.send_modify(|standing| standing.broken = Some("no disk".to_owned()));
    let broken = desk.attach(&host, &asked(None, 9), &office.outlook);
    assert!(matches!(broken, Admission::Unfit(why) if why.contains("no disk")));
    assert!(!desk.load(&office.outlook).formed);
    let newcomer = Outlook { history: None, ..office.outlook.clone() };
    office.standing.send_modify(|standing| standing.broken = None);
    assert!(matches!(desk.attach(&host, &asked(None, 9), &newcomer), Admission::Unfit(_)));
}

#[tokio::test]
async fn a_host_asks_one_thing_at_a_time() {
    let office = office();
    let session = office.attach("delta");
    let asked = follow(session, Place::default(), None);
    let mut waiting = tokio::task::JoinSet::new();
    let office = Arc::new(office);
    for _ in 0..QUESTIONS {
        let (office, asked) = (office.clone(), asked.clone());
        waiting.spawn(async move { office.ask("delta", &asked).await });
    }
    tokio::task::yield_now().await;
    let more = office.desk.follow(&name("delta"), &asked, &office.outlook).await;
    assert!(matches!(more, Err(DeskError::TooMuch)));
    waiting.shutdown().await;
    assert_eq!(office.desk.hosts(), 1, "it may come back at once");
}
