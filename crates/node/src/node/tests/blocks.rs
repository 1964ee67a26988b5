//! Pools whose blocks come and go with the pods.

use std::fs;

use podwire_api::{Repair, blocks_path, database_path};
use tempfile::TempDir;

use super::*;
use crate::blocks::{Before, arrange};
use crate::parse_cluster_pool;

/// A start of a node whose pods are of pool `blue`, if there is one, in this state folder.
struct Start<'a> {
    name: &'a str,
    pools: &'a [&'a str],
    folder: TempDir,
}

impl Start<'_> {
    fn of<'a>(pools: &'a [&'a str]) -> Start<'a> {
        Start { name: "n1", pools, folder: tempfile::tempdir().unwrap() }
    }

    /// The node before it has asked for blocks.
    fn prepare(self) -> Result<(Bench, Vec<Repair>), Error> {
        let cidrs = ["10.1.0.0/24", "fd00:1::/64"].map(|cidr| cidr.parse().unwrap());
        let mut config = Config::new(self.name.parse().unwrap(), cidrs.into());
        config.cooldown = Duration::ZERO;
        for text in self.pools {
            let mut pool = parse_cluster_pool(text).unwrap();
            pool.idle = Duration::ZERO;
            config.default_pools = vec!["blue".into()];
            config.cluster_pools.push(pool);
        }
        config.state_dir = self.folder.path().to_owned();
        config.validate().unwrap();
        let opened = store::open(&database_path(&config.state_dir), &config.node, "boot").unwrap();
        let (ipam, mut repairs) = (opened.ipam, opened.repairs);
        crate::pools::arrange(&ipam, &config, &opened.options).unwrap();
        let before = Before { pools: &opened.cluster_pools, is_rebuilt: opened.is_new };
        let blocks = arrange(&ipam, &config, before, &mut repairs)?;
        let datapath = Arc::new(MemoryDatapath::default());
        let links = Arc::new(MemoryLinks::default());
        let routes = Arc::new(MemoryRoutes::default());
        let kernel =
            Kernel { datapath: datapath.clone(), links: links.clone(), routes: routes.clone() };
        routes.lead_to_pods(&ipam.read(pools::prefixes).unwrap()).unwrap();
        let chooser = Chooser::new(config.default_pools.clone(), None);
        let node = Node::new(&config, chooser, ipam, Vec::new(), kernel).unwrap();
        let node = node.with_blocks(blocks);
        Ok((Bench { node, datapath, links, routes, folder: self.folder }, repairs))
    }

    fn go(self) -> (Bench, Vec<Repair>) {
        let (bench, mut repairs) = self.prepare().unwrap();
        repairs.extend(bench.node.fill_blocks().unwrap());
        (bench, repairs)
    }
}

impl Bench {
    /// Ends the agent; its folder stays.
    fn stop(self) -> TempDir {
        self.folder
    }

    fn blocks(&self, pool: &str) -> Vec<IpNetwork> {
        let pools = self.node.pools().unwrap();
        let found = pools.iter().find(|one| one.name == pool);
        found.map_or_else(Vec::new, |pool| pool.cidrs.iter().map(|one| one.cidr).collect())
    }

    fn claimed(&self) -> Vec<IpNetwork> {
        let state = self.node.blocks.as_ref().unwrap().state();
        state.blocks.blocks().map(|block| block.cidr).collect()
    }

    /// What is granted from is claimed, and leads to the pods.
    #[track_caller]
    fn assert_in_step(&self) {
        let sorted = |mut cidrs: Vec<IpNetwork>| {
            cidrs.sort();
            cidrs
        };
        assert_eq!(sorted(self.blocks("blue")), sorted(self.claimed()));
        let mut granted = self.blocks("default");
        granted.extend(self.blocks("blue"));
        assert_eq!(sorted(self.routes.prefixes()), sorted(granted));
    }

    fn tick_to_the_end(&self) {
        while self.node.tick_blocks(&[]) > 0 {}
        assert_eq!(self.node.block_troubles(), []);
    }
}

#[test]
fn blocks_come_before_they_are_needed_and_go_when_they_are_not() {
    let (bench, repairs) = Start::of(&["blue=10.64.0.0/22@28,fd64::/112@124"]).go();
    assert_eq!(repairs, []);
    assert_eq!(bench.blocks("blue").len(), 2, "one of each family is there before the first pod");
    bench.assert_in_step();
    // 14 and 15 addresses are usable, and 8 are to be free.
    for n in 0..8 {
        bench.lease(&format!("c{n}")).unwrap();
    }
    assert_eq!(bench.blocks("blue").len(), 2);
    bench.tick_to_the_end();
    assert_eq!(bench.blocks("blue").len(), 4, "the next ones are claimed while there is room");

    // Faster than any tick.
    let mut held = BTreeSet::new();
    for n in 0..200 {
        let addresses = bench.lease(&format!("c{n}")).unwrap();
        assert_eq!(addresses.len(), 2, "c{n}");
        held.extend(addresses);
    }
    assert_eq!(held.len(), 400);
    assert!(held.iter().all(|held| bench.blocks("blue").iter().any(|one| one.contains(*held))));
    bench.assert_in_step();

    for n in 0..200 {
        bench.node.release(&id(&format!("c{n}"))).unwrap();
    }
    bench.tick_to_the_end();
    // As many as have 8 addresses and 8 more.
    assert_eq!(bench.blocks("blue").len(), 4);
    bench.assert_in_step();
}

#[test]
fn a_full_pool_says_who_has_its_blocks() {
    let (bench, _) = Start::of(&["blue=10.64.0.0/28@30"]).go();
    for n in 0..8 {
        bench.lease(&format!("c{n}")).unwrap();
    }
    let body = bench.lease("late").unwrap_err().body();
    assert_eq!(body.code, ErrorCode::Exhausted);
    let why = "pool blue has no free IPv4 block: 4 of 4 claimed (n1 has 4)";
    assert!(body.message.contains(why) && body.message.contains("size 8"), "{body:?}");
    let trouble = &bench.node.block_troubles()[0];
    assert_eq!(trouble.what, why);
    assert!(trouble.fix.contains("--cluster-pool blue"), "{trouble:?}");
    bench.node.release(&id("c3")).unwrap();
    bench.lease("late").unwrap();
}

/// A pod has both addresses or is refused, also while one of them cannot be had.
#[test]
fn a_family_without_a_block_is_waited_for() {
    let (bench, _) = Start::of(&["blue=10.64.0.0/24@28,fd64::/127@128"]).prepare().unwrap();
    bench.routes.fail_next();
    bench.node.fill_blocks().unwrap();
    assert_eq!(bench.blocks("blue"), [], "nothing is granted that has no route");
    let troubles = bench.node.block_troubles();
    assert!(troubles.iter().any(|one| one.what.contains("fail on purpose")), "{troubles:?}");
    for container in ["a", "b"] {
        assert_eq!(bench.lease(container).unwrap().len(), 2);
    }
    bench.assert_in_step();
    let body = bench.lease("c").unwrap_err().body();
    assert!(body.message.contains("no free IPv6 block"), "{body:?}");
}

#[test]
fn blocks_are_not_edited_by_hand() {
    let (bench, _) = Start::of(&["blue=10.64.0.0/16@28"]).go();
    let cidr = bench.blocks("blue")[0];
    for edit in [CidrEdit::Add, CidrEdit::Drain, CidrEdit::Remove] {
        let error = bench.node.edit_pool("blue", CidrRequest { edit, cidr }).unwrap_err();
        assert_eq!(error.body().code, ErrorCode::Denied);
        assert!(error.to_string().contains("--cluster-pool blue"), "{error}");
    }
    assert!(bench.node.delete_pool("blue").unwrap_err().to_string().contains("--cluster-pool"));
    let cidrs = vec!["10.64.9.0/24".parse().unwrap()];
    let request = PoolRequest { cidrs: cidrs.clone(), ..PoolRequest::default() };
    let refused = bench.node.create_pool("red", &request).unwrap_err().to_string();
    assert_eq!(
        refused,
        "10.64.9.0/24 overlaps with 10.64.0.0/16 of podwired's --cluster-pool blue"
    );
    let request = CidrRequest { edit: CidrEdit::Add, cidr: cidrs[0] };
    bench.node.edit_pool("default", request).unwrap_err();
}

#[test]
fn a_pool_that_was_made_by_hand_is_not_taken() {
    for (option, why) in [
        ("blue=10.65.0.0/16@28", "pool blue with 10.64.0.0/24, which was made by hand"),
        ("red=10.64.0.0/16@28", "10.64.0.0/16 of pool red overlaps with 10.64.0.0/24 of pool blue"),
    ] {
        let (bench, _) = Start::of(&[]).go();
        let cidrs = vec!["10.64.0.0/24".parse().unwrap()];
        let request = PoolRequest { cidrs, ..PoolRequest::default() };
        bench.node.create_pool("blue", &request).unwrap();
        let folder = bench.stop();
        let registry = blocks_path(folder.path());
        assert!(!registry.exists(), "who has no cluster pools needs no registry");
        let error = Start { name: "n1", pools: &[option], folder }.prepare().unwrap_err();
        assert!(error.to_string().starts_with("--cluster-pool: "), "{error}");
        assert!(error.to_string().contains(why), "{error}");
    }
}

#[test]
fn a_pool_that_is_no_option_any_more_runs_empty_and_goes() {
    let pools = ["blue=10.64.0.0/24@30"];
    let (bench, _) = Start::of(&pools).go();
    let held = bench.lease("a").unwrap()[0];
    let before = bench.blocks("blue");
    assert!(before.len() > 2);
    let start = Start { name: "n1", pools: &[], folder: bench.stop() };
    let (bench, repairs) = start.go();
    assert_eq!(repairs.len(), before.len(), "{repairs:?}");
    for repair in &repairs {
        assert_eq!(repair.found, "is of no --cluster-pool any more");
        let cidr = before.iter().find(|cidr| repair.object.contains(&cidr.to_string())).unwrap();
        let done =
            if cidr.contains(held) { "drained: 1 addresses of it are held" } else { "given back" };
        assert_eq!(repair.done, done, "{repair:?}");
    }
    assert_eq!(bench.blocks("blue").len(), 1);
    bench.assert_in_step();
    assert!(bench.node.delete_pool("blue").is_err(), "it goes by itself");
    bench.node.release(&id("a")).unwrap();
    bench.tick_to_the_end();
    assert_eq!(bench.claimed(), []);
    let names = |bench: &Bench| -> Vec<String> {
        bench.node.pools().unwrap().into_iter().map(|pool| pool.name).collect()
    };
    assert_eq!(names(&bench), ["default"]);
    // The name is free again.
    let request = PoolRequest { cidrs: before, ..PoolRequest::default() };
    bench.node.create_pool("blue", &request).unwrap();
    let (bench, repairs) = Start { name: "n1", pools: &[], folder: bench.stop() }.go();
    assert_eq!((repairs, names(&bench)), (Vec::new(), vec!["default".into(), "blue".into()]));
}

#[test]
fn a_restart_finds_its_blocks() {
    let pools = ["blue=10.64.0.0/16@28,fd64::/48@80"];
    let (bench, _) = Start::of(&pools).go();
    let held: Vec<_> = (0..40).map(|n| bench.lease(&format!("c{n}")).unwrap()).collect();
    bench.tick_to_the_end();
    let before = bench.blocks("blue");
    let (bench, repairs) = Start { name: "n1", pools: &pools, folder: bench.stop() }.go();
    assert_eq!((repairs, bench.blocks("blue")), (Vec::new(), before));
    for (n, addresses) in held.iter().enumerate() {
        assert_eq!(&bench.lease(&format!("c{n}")).unwrap(), addresses);
    }
    assert_eq!(bench.claimed().len(), bench.blocks("blue").len());
}

#[test]
fn blocks_are_claimed_again_when_the_registry_is_lost() {
    let pools = ["blue=10.64.0.0/16@28"];
    let (bench, _) = Start::of(&pools).go();
    let held: Vec<_> = (0..40).map(|n| bench.lease(&format!("c{n}")).unwrap()).collect();
    bench.tick_to_the_end();
    let before = bench.blocks("blue");
    let folder = bench.stop();
    let path = blocks_path(folder.path());
    fs::write(&path, b"this is no database").unwrap();
    let (bench, repairs) = Start { name: "n1", pools: &pools, folder }.go();
    assert_eq!(repairs.len(), 1, "{repairs:?}");
    assert_eq!(repairs[0].object, path.display().to_string());
    assert!(repairs[0].done.contains(".damaged-"), "{repairs:?}");
    assert_eq!(bench.blocks("blue"), before);
    bench.tick_to_the_end();
    assert_eq!(bench.claimed().len(), before.len());
    assert_eq!(bench.lease("c7").unwrap(), held[7]);
}

#[test]
fn the_registry_knows_the_blocks_when_the_database_is_lost() {
    let pools = ["blue=10.64.0.0/16@28"];
    let (bench, _) = Start::of(&pools).go();
    (0..40).for_each(|n| drop(bench.lease(&format!("c{n}")).unwrap()));
    let mut before = bench.blocks("blue");
    before.sort();
    let folder = bench.stop();
    fs::write(database_path(folder.path()), b"this is no database").unwrap();
    // They are there when leases are restored, and are given back afterwards.
    let (bench, _) = Start { name: "n1", pools: &pools, folder }.prepare().unwrap();
    let mut found = bench.blocks("blue");
    found.sort();
    assert_eq!(found, before);
    bench.tick_to_the_end();
    assert!(bench.blocks("blue").len() < before.len());
    bench.assert_in_step();
}

#[test]
fn a_renamed_node_does_not_leave_its_blocks_behind() {
    let pools = ["blue=10.64.0.0/28@30"];
    let (bench, _) = Start::of(&pools).go();
    assert_eq!(bench.claimed().len(), 4);
    let (bench, repairs) = Start { name: "n2", pools: &pools, folder: bench.stop() }.go();
    assert!(repairs.iter().any(|repair| repair.found.contains("node n1")), "{repairs:?}");
    assert_eq!(bench.claimed().len(), 4);
    bench.lease("a").unwrap();
    bench.assert_in_step();
}

#[test]
fn many_at_once_are_all_served() {
    let (bench, _) = Start::of(&["blue=10.64.0.0/20@30"]).go();
    let all = Mutex::new(BTreeSet::new());
    thread::scope(|scope| {
        for client in 0..16 {
            let (bench, all) = (&bench, &all);
            scope.spawn(move || {
                for n in 0..20 {
                    let addresses = bench.lease(&format!("c{client}-{n}")).unwrap();
                    all.lock().unwrap().extend(addresses);
                }
            });
        }
    });
    assert_eq!(all.into_inner().unwrap().len(), 320);
    bench.assert_in_step();
}

#[test]
fn the_size_of_blocks_stays() {
    let (bench, _) = Start::of(&["blue=10.64.0.0/16@28"]).go();
    let before = bench.blocks("blue");
    let pools = ["blue=10.64.0.0/16@27"];
    let (bench, _) = Start { name: "n1", pools: &pools, folder: bench.stop() }.go();
    assert_eq!(bench.blocks("blue"), before);
    for n in 0..14 {
        bench.lease(&format!("c{n}")).unwrap();
    }
    let body = bench.lease("late").unwrap_err().body();
    let why = "pool blue has /28 IPv4 blocks in this cluster, and /27 is configured";
    assert!(body.message.contains(why), "{body:?}");
    assert_eq!(bench.node.block_troubles()[0].what, why);
}
