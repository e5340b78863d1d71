//! One `GET` over HTTP/1.1 without its connection: bytes out, bytes in.
//!
//! Owns what has come of an answer and is not read yet. Pure; never asks twice, never keeps a connection. Heads and
//! the sizes of chunks are read by `httparse`, as hyper does. Called by `directory` for answers that end, by `follow`
//! for those that do not.

/// The longest head of an answer, and the longest line between two chunks.
const MAX_HEAD: usize = 64 * 1024;
/// The most headers of an answer.
const HEADERS: usize = 64;

/// The bytes of an answer make none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}: is that an agent?")]
pub struct Broken(&'static str);

/// A question.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Question<'a> {
    pub host: &'a str,
    pub path: &'a str,
    pub token: Option<&'a str>,
    pub last_event: Option<&'a str>,
}

impl Question<'_> {
    /// As it goes out. One question a connection.
    pub fn bytes(&self) -> Vec<u8> {
        let Question { host, path, .. } = self;
        let mut text = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nAccept: */*\r\nConnection: close\r\n");
        let token = self.token.map(|token| ("Authorization", format!("Bearer {token}")));
        let last = self.last_event.map(|id| ("Last-Event-ID", id.to_owned()));
        for (name, value) in token.into_iter().chain(last) {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        text.into_bytes()
    }
}

/// What an answer's head says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    pub status: u16,
    /// The state index of the copy that answered.
    pub index: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default)]
enum Rest {
    #[default]
    Head,
    Sized(u64),
    ChunkSize,
    Chunk(u64),
    ChunkEnd,
    UntilEnd,
    Done,
}

/// An answer as it comes.
#[derive(Debug, Default)]
pub(super) struct Answer {
    unread: Vec<u8>,
    head: Option<Head>,
    rest: Rest,
}

impl Answer {
    /// The head, once it has come.
    pub fn head(&self) -> Option<Head> {
        self.head
    }

    /// All of it has come.
    pub fn is_whole(&self) -> bool {
        matches!(self.rest, Rest::Done)
    }

    /// Takes the next bytes; gives what they hold of the body.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Vec<u8>, Broken> {
        self.unread.extend_from_slice(bytes);
        let mut body = Vec::new();
        while self.step(&mut body)? {}
        Ok(body)
    }

    /// The connection has ended.
    pub fn end(&mut self) -> Result<(), Broken> {
        match self.rest {
            Rest::UntilEnd | Rest::Done => {
                self.rest = Rest::Done;
                Ok(())
            }
            _ => Err(Broken("the answer breaks off")),
        }
    }

    /// False: more bytes are needed, or none.
    fn step(&mut self, body: &mut Vec<u8>) -> Result<bool, Broken> {
        match self.rest {
            Rest::Head => self.read_head(),
            Rest::Sized(left) => {
                let left = self.take(left, body);
                self.rest = if left == 0 { Rest::Done } else { Rest::Sized(left) };
                Ok(false)
            }
            Rest::UntilEnd => {
                body.append(&mut self.unread);
                Ok(false)
            }
            Rest::ChunkSize => self.read_chunk_size(),
            Rest::Chunk(left) => {
                let left = self.take(left, body);
                self.rest = if left == 0 { Rest::ChunkEnd } else { Rest::Chunk(left) };
                Ok(left == 0)
            }
            Rest::ChunkEnd if self.unread.len() < 2 => Ok(false),
            Rest::ChunkEnd => {
                self.unread.drain(..2);
                self.rest = Rest::ChunkSize;
                Ok(true)
            }
            Rest::Done => Ok(false),
        }
    }

    /// Moves as much as there is, at most so much; gives what is left of it.
    fn take(&mut self, left: u64, body: &mut Vec<u8>) -> u64 {
        let there = usize::try_from(left).unwrap_or(usize::MAX).min(self.unread.len());
        body.extend(self.unread.drain(..there));
        left - there as u64
    }

    fn read_head(&mut self) -> Result<bool, Broken> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        let length = match response.parse(&self.unread) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) if self.unread.len() <= MAX_HEAD => return Ok(false),
            _ => return Err(Broken("the answer is not HTTP")),
        };
        let header = |name: &str| {
            let found = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
            std::str::from_utf8(found.value).ok()
        };
        let status = response.code.unwrap_or_default();
        self.head = Some(Head { status, index: header("bigbrother-index").and_then(|i| i.parse().ok()) });
        self.rest = match (header("transfer-encoding"), header("content-length").map(str::parse)) {
            (Some(coding), _) if coding.eq_ignore_ascii_case("chunked") => Rest::ChunkSize,
            (Some(_), _) | (None, Some(Err(_))) => {
                return Err(Broken("the answer has no length that is known"));
            }
            (None, Some(Ok(0))) => Rest::Done,
            (None, Some(Ok(length))) => Rest::Sized(length),
            (None, None) => Rest::UntilEnd,
        };
        self.unread.drain(..length);
        Ok(true)
    }

    fn read_chunk_size(&mut self) -> Result<bool, Broken> {
        match httparse::parse_chunk_size(&self.unread) {
            // What trails behind the last one says nothing here.
            Ok(httparse::Status::Complete((_, 0))) => {
                self.rest = Rest::Done;
                Ok(false)
            }
            Ok(httparse::Status::Complete((length, size))) => {
                self.unread.drain(..length);
                self.rest = Rest::Chunk(size);
                Ok(true)
            }
            Ok(httparse::Status::Partial) if self.unread.len() <= MAX_HEAD => Ok(false),
            _ => Err(Broken("the answer's pieces have no length")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CHUNKED: &str = "HTTP/1.1 200 OK\r\nBigbrother-Index: 17\r\nTransfer-Encoding: chunked\r\n\r\n\
                           5\r\nhello\r\nb;x=y\r\n, the world\r\n0\r\n\r\n";
    const SIZED: &str = "HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy and more";
    const ENDLESS: &str = "HTTP/1.1 200 OK\r\n\r\nuntil the end";

    fn read(text: &str, cuts: &[usize]) -> (Answer, String) {
        let (mut answer, mut body, mut from) = (Answer::default(), Vec::new(), 0);
        for to in cuts.iter().copied().chain([text.len()]) {
            body.extend(answer.feed(&text.as_bytes()[from..to]).unwrap());
            from = to;
        }
        (answer, String::from_utf8(body).unwrap())
    }

    #[test]
    fn a_question_says_who_asks_and_what_was_seen() {
        let bytes = Question { host: "h:1", path: "/v1/x", token: Some("secret"), last_event: Some("a:1:2") };
        let text = String::from_utf8(bytes.bytes()).unwrap();
        assert!(text.starts_with("GET /v1/x HTTP/1.1\r\nHost: h:1\r\n"), "{text}");
        assert!(text.contains("\r\nAuthorization: Bearer secret\r\n"), "{text}");
        assert!(text.ends_with("\r\nLast-Event-ID: a:1:2\r\n\r\n"), "{text}");
    }

    #[test]
    fn an_answer_that_breaks_off_is_no_answer() {
        for at in 0..CHUNKED.len() - 4 {
            let (mut answer, _) = read(&CHUNKED[..at], &[]);
            assert!(!answer.is_whole() && answer.end().is_err(), "cut at {at}");
        }
        let (mut answer, _) = read(ENDLESS, &[]);
        assert!(!answer.is_whole() && answer.end().is_ok() && answer.is_whole());
    }

    #[test]
    fn what_is_no_http_is_refused_and_nothing_is_kept_for_ever() {
        for text in ["SSH-2.0-x\r\n", "HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n"] {
            assert!(Answer::default().feed(text.as_bytes()).is_err(), "{text}");
        }
        let mut answer = Answer::default();
        let endless = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(MAX_HEAD));
        assert!(answer.feed(endless.as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn the_cut_of_an_answer_changes_nothing(cuts in proptest::collection::vec(0usize..120, 0..9)) {
            for (text, status, index, body) in [
                (CHUNKED, 200, Some(17), "hello, the world"),
                (SIZED, 503, None, "busy"),
            ] {
                let mut cuts: Vec<usize> = cuts.iter().map(|cut| (*cut).min(text.len())).collect();
                cuts.sort_unstable();
                let (answer, read) = read(text, &cuts);
                prop_assert_eq!(answer.head(), Some(Head { status, index }));
                prop_assert_eq!(read, body);
                prop_assert!(answer.is_whole());
            }
        }
    }
}
