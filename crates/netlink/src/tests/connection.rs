use super::*;
use crate::fixture::{index, net};
use crate::link::{self, Query};
use crate::{Add, Address, Answers, Entity, Link};
use std::collections::VecDeque;

/// Plays the kernel: what was sent is kept, what is received was scripted.
#[derive(Debug, Default)]
struct Script {
    sent: Vec<Vec<u8>>,
    datagrams: VecDeque<io::Result<Vec<u8>>>,
}

impl Transport for Script {
    fn send(&mut self, datagram: &[u8]) -> io::Result<()> {
        self.sent.push(datagram.to_vec());
        Ok(())
    }

    fn receive(&mut self, buffer: &mut [u8], _: Option<Instant>) -> io::Result<usize> {
        let next = self.datagrams.pop_front();
        let datagram = next.unwrap_or_else(|| Err(io::ErrorKind::WouldBlock.into()))?;
        let fits = datagram.len().min(buffer.len());
        buffer[..fits].copy_from_slice(&datagram[..fits]);
        Ok(datagram.len())
    }
}

fn scripted(datagrams: impl IntoIterator<Item = Vec<u8>>) -> Connection<Script> {
    let datagrams = datagrams.into_iter().map(Ok).collect();
    Connection::new(Script { sent: Vec::new(), datagrams }, Duration::from_secs(5))
}

fn message(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut builder = MessageBuilder::new(&mut bytes, kind, flags, sequence);
    builder.fixed(payload);
    builder.finish().unwrap();
    bytes
}

/// An acknowledgement with the header of the request, as `NETLINK_CAP_ACK` has it.
fn ack(sequence: u32, number: i32, text: Option<&str>) -> Vec<u8> {
    let mut payload = (-number).to_ne_bytes().to_vec();
    payload.extend([0; wire::HEADER_LEN]);
    let mut flags = NLM_F_CAPPED;
    if let Some(text) = text {
        flags |= NLM_F_ACK_TLVS;
        // First the offset of the attribute that was wrong, then the text.
        payload.extend([8, 0, 2, 0, 44, 0, 0, 0]);
        payload.extend(u16::try_from(text.len() + 5).unwrap().to_ne_bytes());
        payload.extend(NLMSGERR_ATTR_MSG.to_ne_bytes());
        payload.extend(text.bytes().chain([0]));
    }
    message(NLMSG_ERROR, flags, sequence, &payload)
}

fn done(sequence: u32, flags: u16) -> Vec<u8> {
    message(NLMSG_DONE, flags | 2, sequence, &0_i32.to_ne_bytes())
}

fn link_named(sequence: u32, flags: u16, number: u32, name: &str) -> Vec<u8> {
    let payload = crate::fixture::payload(|message| {
        let mut fixed = [0; 16];
        fixed[4..8].copy_from_slice(&number.to_ne_bytes());
        message.fixed(&fixed);
        message.attr_str(3, name.as_bytes());
    });
    message(link::RTM_NEWLINK, flags | 2, sequence, &payload)
}

fn names(links: &[Link]) -> Vec<String> {
    links.iter().map(|link| link.name.to_string()).collect()
}

fn list(connection: &mut Connection<Script>) -> Result<Vec<Link>, Error> {
    connection.dump(&link::List, |message| Link::parse(message.payload).map(Some))
}

fn addresses(count: u8) -> Vec<Address> {
    (0..count).map(|n| Address::new(index(3), net(&format!("10.0.0.{n}/32")))).collect()
}

#[test]
fn a_batch_is_one_send_and_one_answer() {
    let mut connection = scripted([ack(3, 0, None)]);
    let mut batch = Batch::new();
    for address in &addresses(3) {
        batch.push(&Add(address));
    }
    connection.exchange(&mut batch).unwrap().all_ok().unwrap();
    assert_eq!(connection.transport.sent.len(), 1);
    let sent: Vec<_> = wire::messages(&connection.transport.sent[0]).map(Result::unwrap).collect();
    let numbers: Vec<_> = sent.iter().map(|message| message.sequence).collect();
    assert_eq!(numbers, [1, 2, 3]);
    let asks: Vec<_> = sent.iter().map(|message| message.flags & NLM_F_ACK != 0).collect();
    assert_eq!(asks, [false, false, true]);
}

#[test]
fn failures_find_their_requests_and_keep_the_kernels_words() {
    // Several answers in one datagram, and one of an earlier exchange.
    let mut answers = ack(900, libc::EPERM, None);
    answers.extend(ack(1, libc::EEXIST, Some("Address already assigned")));
    let mut connection = scripted([answers, ack(3, libc::ENODEV, None)]);
    let mut batch = Batch::new();
    let tickets: Vec<_> = addresses(3).iter().map(|address| batch.push(&Add(address))).collect();
    let replies = connection.exchange(&mut batch).unwrap();

    let first = replies.outcome(tickets[0]).unwrap_err();
    assert!(first.is_exists());
    assert_eq!(first.kernel_message(), Some("Address already assigned"));
    let said = first.to_string();
    assert!(said.starts_with("cannot add address 10.0.0.0/32 dev 3: Address already"), "{said}");
    replies.outcome(tickets[1]).unwrap();
    let third = replies.outcome(tickets[2]).unwrap_err();
    assert!(third.is_not_found() && third.kernel_message().is_none());
    assert_eq!(replies.errors().map(|(ticket, _)| ticket.number()).collect::<Vec<_>>(), [0, 2]);
    assert!(replies.all_ok().unwrap_err().is_exists());
}

#[test]
fn the_text_follows_a_whole_request_too() {
    // Without NETLINK_CAP_ACK the kernel repeats the request: here 20 bytes, padded to 24.
    let mut payload = (-libc::EINVAL).to_ne_bytes().to_vec();
    payload.extend([21, 0, 0, 0]);
    payload.extend([0; 20]);
    payload.extend([8, 0, 1, 0, b'b', b'a', b'd', 0]);
    let mut connection = scripted([message(NLMSG_ERROR, NLM_F_ACK_TLVS, 1, &payload)]);
    let mut batch = Batch::new();
    batch.push(&Add(&addresses(1)[0]));
    let error = connection.exchange(&mut batch).unwrap().all_ok().unwrap_err();
    assert_eq!(error.kernel_message(), Some("bad"));
}

#[test]
fn objects_are_answered_along_with_acknowledgements() {
    let mut connection =
        scripted([ack(1, libc::EEXIST, None), link_named(2, 0, 7, "eth0"), ack(2, 0, None)]);
    let mut batch = Batch::new();
    let added = batch.push(&Add(&addresses(1)[0]));
    let asked = batch.push(&Query(index(7).into()));
    let mut replies = connection.exchange(&mut batch).unwrap();
    assert!(replies.outcome(added).unwrap_err().is_exists());
    assert_eq!(replies.take_link(asked).unwrap().name.to_string(), "eth0");
    // Success without an object.
    let mut connection = scripted([ack(1, 0, None)]);
    let mut batch = Batch::new();
    let asked = batch.push(&Query(index(7).into()));
    let mut replies = connection.exchange(&mut batch).unwrap();
    assert_eq!(replies.take_optional(asked, Link::parse).unwrap(), None);
    assert!(matches!(
        replies.take_link(asked),
        Err(Error::Malformed { source: ParseError::NoAnswer, .. })
    ));
}

#[test]
fn many_requests_are_several_sends() {
    let mut connection = scripted([ack(128, 0, None), ack(200, libc::ENODEV, None)]);
    let mut batch = Batch::new();
    for address in &addresses(200) {
        batch.push(&Add(address));
    }
    let replies = connection.exchange(&mut batch).unwrap();
    assert_eq!(connection.transport.sent.len(), 2);
    assert_eq!(replies.errors().map(|(ticket, _)| ticket.number()).collect::<Vec<_>>(), [199]);

    let mut connection = scripted([ack(16, 0, None), ack(20, 0, None)]);
    let mut batch = Batch::new();
    for number in 1..=20 {
        batch.push(&Query(index(number).into()));
    }
    connection.exchange(&mut batch).unwrap().all_ok().unwrap();
    assert_eq!(connection.transport.sent.len(), 2);
}

/// A request whose attribute is longer than its length field can say.
struct Huge;

impl Request for Huge {
    fn message_type(&self) -> u16 {
        Address::NEW
    }

    fn flags(&self) -> u16 {
        0
    }

    fn emit(&self, message: &mut MessageBuilder<'_>) {
        message.attr(1, &vec![0; 70_000]);
    }

    fn operation(&self) -> Operation {
        Operation::Add
    }

    fn subject(&self) -> Subject {
        Subject::Named("something huge")
    }

    fn answers(&self) -> Answers {
        Answers::Acknowledgement
    }
}

#[test]
fn what_does_not_fit_a_message_fails_alone() {
    let mut connection = scripted([ack(2, 0, None)]);
    let mut batch = Batch::new();
    let first = batch.push(&Huge);
    let second = batch.push(&Add(&addresses(1)[0]));
    let third = batch.push(&Huge);
    let replies = connection.exchange(&mut batch).unwrap();
    for ticket in [first, third] {
        let error = replies.outcome(ticket).unwrap_err();
        assert!(error.to_string().contains("something huge"), "{error}");
    }
    replies.outcome(second).unwrap();
    assert_eq!(wire::messages(&connection.transport.sent[0]).count(), 1);

    let mut connection = scripted([]);
    let mut batch = Batch::new();
    batch.push(&Huge);
    assert!(connection.exchange(&mut batch).unwrap().all_ok().is_err());
    assert!(connection.transport.sent.is_empty());
}

#[test]
fn an_empty_batch_is_not_sent() {
    let mut connection = scripted([]);
    connection.exchange(&mut Batch::new()).unwrap().all_ok().unwrap();
    assert!(connection.transport.sent.is_empty());
}

#[test]
fn a_torn_list_is_read_again() {
    // Torn in the middle, then torn as told only at its end, then whole.
    let mut connection = scripted([
        link_named(1, 0, 1, "lo"),
        [link_named(1, NLM_F_DUMP_INTR, 2, "gone"), done(1, NLM_F_DUMP_INTR)].concat(),
        link_named(2, 0, 1, "lo"),
        done(2, NLM_F_DUMP_INTR),
        [link_named(3, 0, 1, "lo"), link_named(3, 0, 3, "eth0")].concat(),
        done(3, 0),
    ]);
    assert_eq!(names(&list(&mut connection).unwrap()), ["lo", "eth0"]);
    assert_eq!(connection.transport.sent.len(), 3);
}

#[test]
fn a_list_that_never_holds_still_is_an_error() {
    let torn = (1..=DUMP_ATTEMPTS).map(|sequence| done(sequence, NLM_F_DUMP_INTR));
    let mut connection = scripted(torn);
    let error = list(&mut connection).unwrap_err();
    assert!(matches!(error, Error::TornDump { attempts: DUMP_ATTEMPTS, .. }), "{error}");
    assert_eq!(error.to_string(), "links changed each of the 32 times they were read");
}

#[test]
fn a_list_may_fail_at_its_start_or_at_its_end() {
    let mut connection = scripted([ack(1, libc::EINVAL, Some("Invalid header"))]);
    assert_eq!(list(&mut connection).unwrap_err().kernel_message(), Some("Invalid header"));

    let mut payload = (-libc::ENOENT).to_ne_bytes().to_vec();
    payload.extend([13, 0, 1, 0]);
    payload.extend(b"no table\0");
    let failed = message(NLMSG_DONE, NLM_F_ACK_TLVS | 2, 1, &payload);
    let mut connection = scripted([failed]);
    let error = list(&mut connection).unwrap_err();
    assert!(error.is_not_found());
    assert_eq!(error.kernel_message(), Some("no table"));
}

#[test]
fn silence_is_a_timeout_and_late_answers_are_nobodys() {
    let mut connection = scripted([link_named(1, 0, 1, "lo")]);
    let error = list(&mut connection).unwrap_err();
    assert!(error.is_timeout(), "{error}");
    assert_eq!(error.to_string(), "no answer within 5s to list links");

    // The rest of that list comes after all. The next exchange first takes it away.
    connection.transport.datagrams.extend([
        Ok(link_named(1, 0, 2, "late")),
        Err(io::Error::from_raw_os_error(libc::ENOBUFS)),
        Ok(done(1, 0)),
        Err(io::ErrorKind::WouldBlock.into()),
        Ok(link_named(2, 0, 3, "eth0")),
        Ok(done(2, 0)),
    ]);
    assert_eq!(names(&list(&mut connection).unwrap()), ["eth0"]);
}

#[test]
fn lost_answers_are_errors() {
    let mut connection = scripted([]);
    let lost = io::Error::from_raw_os_error(libc::ENOBUFS);
    connection.transport.datagrams.push_back(Err(lost));
    let error = list(&mut connection).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOBUFS));

    let mut connection = scripted([message(NLMSG_OVERRUN, 0, 1, &[])]);
    assert_eq!(list(&mut connection).unwrap_err().raw_os_error(), Some(libc::ENOBUFS));

    let mut connection = scripted([vec![0; RECEIVE_BUFFER + 4]]);
    let error = list(&mut connection).unwrap_err();
    assert!(error.to_string().contains("longer than the receive buffer"), "{error}");
}

#[test]
fn nonsense_is_an_error() {
    for nonsense in [vec![1, 2, 3], message(NLMSG_ERROR, 0, 1, &[]), vec![255; 64]] {
        let mut connection = scripted([nonsense.clone()]);
        let error = list(&mut connection).unwrap_err();
        assert!(matches!(error, Error::Malformed { .. }), "{nonsense:?}: {error}");
        let mut connection = scripted([nonsense]);
        let mut batch = Batch::new();
        batch.push(&Add(&addresses(1)[0]));
        assert!(matches!(connection.exchange(&mut batch), Err(Error::Malformed { .. })));
    }
}

#[test]
fn numbers_wrap() {
    let mut connection = scripted([ack(u32::MAX, libc::EPERM, None), ack(1, 0, None)]);
    connection.sequence = u32::MAX;
    let mut batch = Batch::new();
    for address in &addresses(3) {
        batch.push(&Add(address));
    }
    let replies = connection.exchange(&mut batch).unwrap();
    assert_eq!(replies.errors().map(|(ticket, _)| ticket.number()).collect::<Vec<_>>(), [0]);
}

proptest::proptest! {
    #[test]
    fn any_answer_is_taken_without_a_panic(
        datagrams in proptest::collection::vec(
            proptest::collection::vec(proptest::prelude::any::<u8>(), 0..80), 0..4,
        ),
        (kind, flags) in (0_u16..5, proptest::prelude::any::<u16>()),
        payload in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..60),
    ) {
        let mut script = vec![message(kind, flags, 1, &payload)];
        script.extend(datagrams);
        let _ = list(&mut scripted(script.clone()));
        let mut batch = Batch::new();
        batch.push(&Add(&addresses(1)[0]));
        let _ = scripted(script).exchange(&mut batch);
    }
}
