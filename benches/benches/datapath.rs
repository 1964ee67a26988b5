//! The shipped programs, per packet.
#![expect(clippy::print_stdout, reason = "it tells the runner the sizes of tables")]

use podwire_benches::{
    Result, criterion,
    datapath::{Node, cases},
    flat_group, must, timing,
};

fn main() {
    // Criterion cannot be handed to the thread that is in the node's namespaces: it is made there.
    must(Node::run(|node| {
        timing::bind_to_one_cpu()?;
        // `cargo xtask bench` puts this line into its report.
        println!("sizes {}", node.sizes()?);
        let mut criterion = criterion();
        measure(&mut criterion, node)?;
        criterion.final_summary();
        Ok(())
    }));
}

fn measure(criterion: &mut criterion::Criterion, node: &Node) -> Result<()> {
    let mut group = flat_group(criterion, "datapath");
    for case in cases(node) {
        let name = case.name.trim_start_matches("datapath/");
        let mut measured = false;
        group.bench_function(name, |bencher| {
            if !measured {
                must(node.check_path(&case));
                measured = true;
            }
            bencher.iter_custom(|repetitions| must(node.measure(&case, repetitions)));
        });
        if measured {
            node.check_path(&case)?;
        }
    }
    Ok(())
}
