//! Loading, pinning and test-running the fixture.

mod support;

use podwire_bpf::{
    Array, Difference, Error, HashMap, Loader, LpmTrie, LruHashMap, MapLayout, MapType, ObjectSpec,
    PerCpuArray, PerCpuHashMap, Prefix, Program, ProgramArray, ProgramType, Property, RingBuffer,
    SkbContext, TestRun,
};
use proptest::prelude::*;
use support::{BPFFS, FIXTURE, isolated, names};
use zerocopy::{FromBytes, Immutable, IntoBytes};

const PROGRAMS: [&str; 8] =
    ["count_first", "count_second", "count_drop", "verdict", "rewrite", "tell", "jump", "landed"];

#[derive(Clone, Copy, Debug, PartialEq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct FlowKey {
    source: u64,
    destination: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct FlowValue {
    packets: u64,
    bytes: u64,
    rest: [u64; 6],
}

fn packet() -> Vec<u8> {
    let mut packet = vec![0; 60];
    packet[12] = 0x08;
    packet
}

fn context(mark: u32) -> SkbContext {
    SkbContext { mark, ..SkbContext::default() }
}

#[test]
fn the_spec_is_plain_data() {
    let spec = ObjectSpec::parse(FIXTURE).unwrap();
    assert_eq!(spec.license, "Dual MIT/GPL");
    let maps: Vec<_> = spec.maps.keys().map(String::as_str).collect();
    assert_eq!(
        maps,
        [".rodata", "EVENTS", "FLOWS", "JUMPS", "PREFIXES", "RECENT", "SLOTS", "TALLY", "VERDICTS"]
    );
    assert_eq!(
        spec.maps["FLOWS"].layout,
        MapLayout {
            kind: MapType::Hash,
            key_size: 16,
            value_size: 64,
            max_entries: 65536,
            flags: 0
        }
    );
    assert_eq!(spec.maps["PREFIXES"].layout.kind, MapType::LpmTrie);
    assert_eq!(spec.maps["PREFIXES"].layout.key_size, 8);
    assert_eq!(spec.maps["EVENTS"].layout.value_size, 0);
    assert!(spec.maps[".rodata"].is_data() && !spec.maps["FLOWS"].is_data());
    assert_eq!(spec.programs.len(), 10);
    assert!(spec.programs.values().all(|program| program.kind == ProgramType::Classifier));
}

#[test]
fn bytes_of_any_alignment_are_read() {
    for offset in 0..8 {
        let mut bytes = vec![0; offset];
        bytes.extend_from_slice(FIXTURE);
        ObjectSpec::parse(&bytes[offset..]).unwrap();
    }
}

#[test]
fn what_is_no_object_is_an_error() {
    for bytes in [&b""[..], b"not an object", &FIXTURE[..FIXTURE.len() / 2]] {
        let error = ObjectSpec::parse(bytes).unwrap_err();
        assert!(matches!(error, Error::Parse { .. }), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_damaged_object_is_at_worst_an_error(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        length in any::<prop::sample::Index>(),
        cut in prop::bool::weighted(0.1),
    ) {
        let mut bytes = FIXTURE.to_vec();
        for (place, value) in damage {
            bytes[place.index(FIXTURE.len())] = value;
        }
        if cut {
            bytes.truncate(length.index(FIXTURE.len()));
        }
        if let Err(error) = ObjectSpec::parse(&bytes) {
            prop_assert!(matches!(error, Error::Parse { .. }), "{}", error);
        }
    }
}

#[test]
#[ignore = "needs root: loads programs"]
fn a_loaded_program_says_what_it_is() {
    let object = Loader::new(FIXTURE).programs(["count_first"]).load().unwrap();
    let program = object.program("count_first").unwrap();
    let info = program.info().unwrap();
    assert_eq!((info.id, info.tag), (program.id(), program.tag()));
    assert_eq!(info.name, "count_first");
    assert_eq!(info.kind, ProgramType::Classifier);
    assert!(info.translated_bytes > 0 && info.verified_instructions > 0);
    assert_eq!(program.tag().to_string().len(), 16);
    let again = Program::by_id(program.id()).unwrap();
    assert_eq!(again.tag(), program.tag());
    let error = object.program("count_second").unwrap_err();
    assert!(error.is_not_found());
    assert_eq!(error.to_string(), "no program count_second; there are: count_first");
    assert!(Loader::new(FIXTURE).programs(["nothing"]).load().unwrap_err().is_not_found());
    assert!(Loader::new(FIXTURE).max_entries("NOTHING", 1).load().unwrap_err().is_not_found());
}

#[test]
#[ignore = "needs root: loads programs"]
fn a_refused_program_comes_with_the_verifiers_words() {
    let error = Loader::new(FIXTURE).programs(["refused"]).load().unwrap_err();
    let Error::LoadProgram { program, log, .. } = &error else { panic!("{error}") };
    assert_eq!(program, "refused");
    assert!(!error.is_permission_denied());
    let short = error.to_string();
    assert!(short.starts_with("loading program refused: Permission denied"), "{short}");
    assert!(short.contains("invalid mem access"), "{short}");
    assert_eq!(short.lines().count(), 1);
    let long = format!("{error:#}");
    assert!(long.contains(log.as_str().trim_end()) && long.lines().count() > 5, "{long}");
}

#[test]
#[ignore = "needs root: loads programs"]
fn a_test_run_answers_packet_and_context() {
    let object = Loader::new(FIXTURE).programs(PROGRAMS).load().unwrap();
    let packet = packet();
    let run = TestRun::new(&packet).context(SkbContext {
        mark: 7,
        cb: [1, 2, 3, 4, 5],
        priority: 9,
        ..SkbContext::default()
    });
    let output = object.program("rewrite").unwrap().test_run(&run).unwrap();
    assert_eq!(output.return_value, 0);
    assert_eq!((output.context.mark, output.context.priority), (8, 9));
    assert_eq!(output.context.cb, [1, 3, 3, 4, 5]);
    assert_eq!(output.data.len(), packet.len());
    assert_eq!(output.data[0], 0xa5);
    assert_eq!(output.data[1..], packet[1..]);
    let output = object.program("rewrite").unwrap().test_run(&run.clone().repeat(10)).unwrap();
    assert_eq!(output.context.mark, 17, "a repetition sees what the one before has left");
    let dropped = object.program("count_drop").unwrap().test_run(&run).unwrap();
    assert_eq!(dropped.return_value, 2);
    let error = object.program("rewrite").unwrap().test_run(&TestRun::new(&[0; 4])).unwrap_err();
    assert!(error.to_string().starts_with("test-running program rewrite: "), "{error}");
}

#[test]
#[ignore = "needs root: loads programs"]
fn a_global_is_set_before_the_programs_are_checked() {
    let packet = packet();
    for wanted in [0_i32, 2, -1] {
        let object =
            Loader::new(FIXTURE).programs(["verdict"]).global("VERDICT", &wanted).load().unwrap();
        let output = object.program("verdict").unwrap().test_run(&TestRun::new(&packet)).unwrap();
        assert_eq!(output.return_value, wanted.cast_unsigned());
    }
    let error = Loader::new(FIXTURE).global("VERDICT", &0_u64).load().unwrap_err();
    assert!(matches!(error, Error::Global { .. }), "{error}");
    let error = Loader::new(FIXTURE).global("NOTHING", &0_u32).load().unwrap_err();
    assert!(matches!(error, Error::Global { .. }), "{error}");
}

#[test]
#[ignore = "needs root: loads programs"]
fn programs_and_user_space_see_the_same_maps() {
    let object = Loader::new(FIXTURE).programs(["touch", "count_first"]).load().unwrap();
    let touch = object.program("touch").unwrap();
    let packet = packet();
    let flows = object.map::<HashMap<FlowKey, FlowValue>>("FLOWS").unwrap();
    let recent = object.map::<LruHashMap<u32, u64>>("RECENT").unwrap();
    let tally = object.map::<PerCpuHashMap<u32, u64>>("TALLY").unwrap();
    let prefixes = object.map::<LpmTrie<[u8; 4], u32>>("PREFIXES").unwrap();
    let verdicts = object.map::<PerCpuArray<u64>>("VERDICTS").unwrap();

    let mark = u32::from_be_bytes([10, 1, 2, 3]);
    let run = TestRun::new(&packet).context(context(mark)).repeat(3);
    assert_eq!(touch.test_run(&run).unwrap().return_value, 0);
    prefixes.insert(&Prefix::new([10, 0, 0, 0], 8).unwrap(), &8).unwrap();
    prefixes.insert(&Prefix::new([10, 1, 0, 0], 16).unwrap(), &16).unwrap();
    assert_eq!(touch.test_run(&run).unwrap().return_value, 16);

    let flow = flows.get(&FlowKey { source: mark.into(), destination: 0 }).unwrap().unwrap();
    assert_eq!((flow.packets, flow.bytes), (6, 6 * packet.len() as u64));
    assert_eq!(recent.get(&mark).unwrap(), Some(mark.into()));
    assert_eq!(tally.total(&mark).unwrap(), Some(6));
    assert_eq!(tally.totals().unwrap(), [(mark, 6)]);

    object.program("count_first").unwrap().test_run(&run).unwrap();
    assert_eq!(verdicts.total(1).unwrap(), 3);
    assert_eq!(verdicts.totals().unwrap(), [0, 3, 0, 0, 0, 0, 0, 0]);
}

#[test]
#[ignore = "needs root: loads programs"]
fn a_program_array_is_jumped_through() {
    let object = Loader::new(FIXTURE).programs(["jump", "landed", "count_drop"]).load().unwrap();
    let jumps = object.map::<ProgramArray>("JUMPS").unwrap();
    let packet = packet();
    let jump = |slot| {
        let run = TestRun::new(&packet).context(context(slot));
        object.program("jump").unwrap().test_run(&run).unwrap().return_value
    };
    assert_eq!(jump(2), 7);
    assert_eq!(jumps.program_id(2).unwrap(), None);
    let landed = object.program("landed").unwrap();
    jumps.set(2, landed).unwrap();
    assert_eq!(jumps.program_id(2).unwrap(), Some(landed.id()));
    assert_eq!(jump(2), 42);
    jumps.set(2, object.program("count_drop").unwrap()).unwrap();
    assert_eq!(jump(2), 2);
    assert_eq!(jumps.clear(2).unwrap(), podwire_bpf::Removal::Removed);
    assert_eq!(jumps.clear(2).unwrap(), podwire_bpf::Removal::Absent);
    assert_eq!(jump(2), 7);
    assert!(matches!(jumps.set(4, landed), Err(Error::OutOfRange { index: 4, length: 4, .. })));
}

#[test]
#[ignore = "needs root: loads programs"]
fn maps_are_pinned_and_taken_again() {
    isolated(|| {
        let folder = format!("{BPFFS}/podwire/maps");
        let first = Loader::new(FIXTURE).programs(["touch"]).pin_maps(&folder).load().unwrap();
        let declared =
            ["EVENTS", "FLOWS", "JUMPS", "PREFIXES", "RECENT", "SLOTS", "TALLY", "VERDICTS"];
        assert_eq!(names(&folder), declared);
        let run = packet();
        let run = TestRun::new(&run).context(context(5));
        first.program("touch").unwrap().test_run(&run).unwrap();
        let id = first.untyped_map("FLOWS").unwrap().info().id;
        drop(first);
        let second = Loader::new(FIXTURE).programs(["touch"]).pin_maps(&folder).load().unwrap();
        assert_eq!(second.untyped_map("FLOWS").unwrap().info().id, id);
        let recent = LruHashMap::<u32, u64>::open(format!("{folder}/RECENT")).unwrap();
        assert_eq!(recent.get(&5).unwrap(), Some(5));
        assert!(recent.as_map().memory_bytes().unwrap() > 0);
        let error = LruHashMap::<u64, u64>::open(format!("{folder}/FLOWS")).unwrap_err();
        let Error::WrongMapType { mismatch } = &error else { panic!("{error}") };
        assert_eq!(mismatch.differences.len(), 3, "{error}");
        assert!(Array::<u64>::open(format!("{folder}/NOTHING")).unwrap_err().is_not_found());
    });
}

#[test]
#[ignore = "needs root: loads programs"]
fn a_pin_of_another_layout_is_refused_with_all_differences() {
    isolated(|| {
        let folder = format!("{BPFFS}/maps");
        std::fs::create_dir(&folder).unwrap();
        let pins = [("SLOTS", 16), ("FLOWS", 1024)];
        for (name, max_entries) in pins {
            let map = HashMap::<u32, u32>::create(name, max_entries).unwrap();
            map.as_map().pin(format!("{folder}/{name}")).unwrap();
        }
        let loader = Loader::new(FIXTURE).programs(["touch"]).pin_maps(&folder);
        let error = loader.load().unwrap_err();
        let Error::IncompatibleMaps { mismatches } = &error else { panic!("{error}") };
        assert!(error.is_incompatible());
        assert_eq!(mismatches.len(), 2);
        assert!(mismatches[0].map.ends_with("/FLOWS"));
        let number = |property, wanted, found| Difference::Number { property, wanted, found };
        assert_eq!(
            mismatches[0].differences,
            [
                number(Property::KeySize, 16, 4),
                number(Property::ValueSize, 64, 4),
                number(Property::MaxEntries, 65536, 1024),
            ]
        );
        assert_eq!(
            mismatches[1].differences,
            [
                Difference::Kind { wanted: MapType::Array, found: MapType::Hash },
                number(Property::ValueSize, 8, 4),
            ]
        );
        assert_eq!(names(&folder), ["FLOWS", "SLOTS"], "nothing has been changed");
        std::fs::remove_file(format!("{folder}/FLOWS")).unwrap();
        std::fs::remove_file(format!("{folder}/SLOTS")).unwrap();
        loader.load().unwrap();
        let error = Loader::new(FIXTURE)
            .programs(["touch"])
            .pin_maps(&folder)
            .max_entries("RECENT", 1024)
            .load()
            .unwrap_err();
        assert!(error.to_string().ends_with("RECENT: 512 entries, wanted 1024"), "{error}");
    });
}

#[test]
#[ignore = "needs root: loads programs"]
fn a_failed_load_leaves_no_pin() {
    isolated(|| {
        let folder = format!("{BPFFS}/maps");
        let error =
            Loader::new(FIXTURE).programs(["refused"]).pin_maps(&folder).load().unwrap_err();
        assert!(matches!(error, Error::LoadProgram { .. }), "{error}");
        assert!(names(&folder).is_empty());
        // A folder in the place of the last map's pin: those before it are taken back.
        std::fs::create_dir(format!("{folder}/unrelated")).unwrap();
        let pinned = Loader::new(FIXTURE)
            .programs(["touch"])
            .unpinned("EVENTS")
            .pin_maps(&folder)
            .load()
            .unwrap();
        drop(pinned);
        assert!(!names(&folder).contains(&"EVENTS".to_owned()));
    });
}

#[test]
#[ignore = "needs root: loads programs"]
fn pins_elsewhere_are_refused_with_advice() {
    isolated(|| {
        let folder = std::env::temp_dir().join(format!("podwire-bpf-{}", std::process::id()));
        let error = Loader::new(FIXTURE).programs(["touch"]).pin_maps(&folder).load().unwrap_err();
        std::fs::remove_dir(&folder).unwrap();
        assert!(matches!(error, Error::NotBpffs { .. }));
        assert!(error.to_string().contains("mount -t bpf bpf"), "{error}");
        let map = Array::<u32>::create("a", 1).unwrap();
        let error = map.as_map().pin("/tmp/never").unwrap_err();
        assert!(matches!(error, Error::NotBpffs { .. }), "{error}");
    });
}

#[test]
#[ignore = "needs root: loads programs"]
fn the_ring_buffer_is_read_in_order() {
    let object = Loader::new(FIXTURE).programs(["tell"]).load().unwrap();
    let mut events = object.map::<RingBuffer>("EVENTS").unwrap();
    assert_eq!(events.capacity(), 4096);
    let packet = packet();
    let tell = |mark| {
        let run = TestRun::new(&packet).context(context(mark));
        object.program("tell").unwrap().test_run(&run).unwrap().return_value
    };
    assert!(!events.wait(std::time::Duration::ZERO).unwrap());
    assert!(events.next().is_none());
    let mut sequence = 0_u64;
    // More than the buffer holds, several times round its end, every third discarded.
    for round in 0..100 {
        let mut expected = Vec::new();
        for step in 0..round % 50 {
            let mark = if step % 3 == 0 { 1 } else { 2 * step };
            assert_eq!(tell(mark), 0);
            sequence += 1;
            if mark != 1 {
                expected.push((sequence, mark));
            }
        }
        if !expected.is_empty() {
            assert!(events.wait(std::time::Duration::from_secs(5)).unwrap());
        }
        let mut seen = Vec::new();
        let count = events.read_all(|record| {
            let number = u64::from_ne_bytes(record[..8].try_into().unwrap());
            let length = u32::from_ne_bytes(record[8..12].try_into().unwrap());
            let mark = u32::from_ne_bytes(record[12..].try_into().unwrap());
            assert_eq!(length as usize, packet.len());
            seen.push((number, mark));
        });
        assert_eq!(count, expected.len());
        assert_eq!(seen, expected);
        assert_eq!(events.backlog(), 0);
    }
    // Full: the program says so, nothing is overwritten, and reading makes room.
    let mut told = 0;
    while tell(2) == 0 {
        told += 1;
    }
    assert_eq!(told, 4096 / 24);
    assert_eq!(events.read_all(|_| ()), told);
    assert_eq!(tell(2), 0);
    let record = events.next().unwrap();
    assert_eq!(record.len(), 16);
    drop(record);
    assert!(events.next().is_none());
}
