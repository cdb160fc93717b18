//! The parts on a packet's path, one by one: `cargo bench --bench parts`.

mod work;

use criterion::{Criterion, criterion_group, criterion_main};

fn parts(c: &mut Criterion) {
    for (name, mut work) in work::all() {
        c.bench_function(name, |b| b.iter(&mut work));
    }
}

criterion_group!(benches, parts);
criterion_main!(benches);
