//! What a device is to do: kernels made ready for it, commands recorded, handed over, waited for.

use std::collections::HashMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, mpsc};

use kernels::shaders::{self, Shader};
use wgpu::{Buffer, BufferUsages};

use super::device::{Device, IMMEDIATES, lock};
use crate::error::Result;

/// Commands that are handed over at once, at most.
const BATCH: usize = 64;

/// Operations that are handed over at once, about, and that one command has at most: a slow device is done with them before its driver takes
/// it for dead.
pub(super) const MOST_WORK: f64 = 1e11;

/// Bytes of weights that may be on their way to the device: what one window of work needs, and the next.
const IN_FLIGHT: u64 = 2 << 30;

/// Bytes that are read back at once.
const PIECE: u64 = 256 << 20;

/// Kernels that are ready, and commands that are not handed over yet.
pub(super) struct Commands {
    pipelines: Mutex<HashMap<String, Arc<Pipeline>>>,
    recorder: Mutex<Recorder>,
    /// How often the device did all it was given. Not every driver says that it gave up on commands; this number then falls behind.
    counter: Buffer,
}

struct Pipeline {
    pipeline: wgpu::ComputePipeline,
    bindings: wgpu::BindGroupLayout,
}

/// Commands that were not handed over yet.
#[derive(Default)]
struct Recorder {
    encoder: Option<wgpu::CommandEncoder>,
    commands: usize,
    /// Operations of these commands.
    work: f64,
    /// Bytes uploaded since the device was waited for.
    uploaded: u64,
    /// How often commands were handed over.
    times: u32,
}

/// A buffer, or a part of it, that a kernel reads or writes.
pub(super) enum Binding<'a> {
    Read(&'a Buffer, Range<u64>),
    Write(&'a Buffer, Range<u64>),
}

impl<'a> Binding<'a> {
    pub fn read(buffer: &'a Buffer) -> Binding<'a> {
        Binding::Read(buffer, 0..buffer.size())
    }

    fn parts(&self) -> (&'a Buffer, &Range<u64>, bool) {
        match self {
            Binding::Read(buffer, range) => (buffer, range, true),
            Binding::Write(buffer, range) => (buffer, range, false),
        }
    }
}

impl Commands {
    pub fn new(device: &wgpu::Device) -> Commands {
        let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
        let counter = wgpu::BufferDescriptor { label: None, size: 4, usage, mapped_at_creation: false };
        Commands {
            pipelines: Mutex::default(),
            recorder: Mutex::default(),
            counter: device.create_buffer(&counter),
        }
    }
}

impl Device {
    /// A small buffer with these bytes, for kernels to read.
    pub(super) fn constant(&self, bytes: &[u8]) -> Buffer {
        let size = (bytes.len() as u64).next_multiple_of(4).max(16);
        let usage = BufferUsages::STORAGE;
        let descriptor =
            |mapped_at_creation| wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation };
        let buffer = self.device.create_buffer(&descriptor(true));
        match buffer.get_mapped_range_mut(..) {
            Ok(mut view) => view.slice(..bytes.len()).copy_from_slice(bytes),
            Err(error) => self.fail(error.to_string()),
        }
        buffer.unmap();
        buffer
    }

    /// Runs a kernel: `bindings` in the order of their numbers, `params` as its struct of parameters.
    pub(super) fn run(&self, shader: &Shader, bindings: &[Binding], params: &[u32], groups: [u32; 3]) {
        if !groups.contains(&0) {
            let pipeline = self.pipeline(shader, bindings);
            self.record(|encoder| self.dispatch(encoder, &pipeline, bindings, params, groups));
        }
    }

    fn dispatch(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        pipeline: &Pipeline,
        bindings: &[Binding],
        params: &[u32],
        groups: [u32; 3],
    ) {
        let entries: Vec<wgpu::BindGroupEntry> = (0..)
            .zip(bindings)
            .map(|(binding, bound)| {
                let (buffer, range, _) = bound.parts();
                let size = wgpu::BufferSize::new(range.end - range.start);
                let resource =
                    wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset: range.start, size });
                wgpu::BindGroupEntry { binding, resource }
            })
            .collect();
        let group = self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &pipeline.bindings,
            entries: &entries,
        });
        let mut pass = encoder.begin_compute_pass(&Default::default());
        pass.set_pipeline(&pipeline.pipeline);
        pass.set_bind_group(0, &group, &[]);
        if !params.is_empty() {
            pass.set_immediates(0, bytemuck::cast_slice(params));
        }
        pass.dispatch_workgroups(groups[0], groups[1], groups[2]);
    }

    /// Records commands, and hands them over with others.
    pub(super) fn record(&self, commands: impl FnOnce(&mut wgpu::CommandEncoder)) {
        let mut recorder = lock(&self.commands.recorder);
        commands(self.encoder(&mut recorder));
        recorder.commands += 1;
        if recorder.commands >= BATCH {
            self.submit(&mut recorder);
        }
    }

    /// Takes note of how much the last command has to do.
    pub(super) fn worked(&self, operations: f64) {
        let mut recorder = lock(&self.commands.recorder);
        recorder.work += operations;
        if recorder.work >= MOST_WORK {
            self.submit(&mut recorder);
        }
    }

    fn encoder<'r>(&self, recorder: &'r mut Recorder) -> &'r mut wgpu::CommandEncoder {
        recorder.encoder.get_or_insert_with(|| self.device.create_command_encoder(&Default::default()))
    }

    fn pipeline(&self, shader: &Shader, bindings: &[Binding]) -> Arc<Pipeline> {
        if let Some(known) = lock(&self.commands.pipelines).get(&shader.name) {
            return known.clone();
        }
        let made = Arc::new(self.make_pipeline(shader, bindings));
        // What came to be while something was wrong may be no pipeline.
        if self.check().is_ok() {
            lock(&self.commands.pipelines).insert(shader.name.clone(), made.clone());
        }
        made
    }

    fn make_pipeline(&self, shader: &Shader, bindings: &[Binding]) -> Pipeline {
        let label = Some(shader.name.as_str());
        let source = wgpu::ShaderSource::Wgsl(shader.text.as_str().into());
        let descriptor = wgpu::ShaderModuleDescriptor { label, source };
        // SAFETY: every kernel stays within what is bound for it by its parameters and its weights' format, whatever the weights'
        // bytes are, and has no loop without an end.
        let module = unsafe {
            self.device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked())
        };
        let entries: Vec<wgpu::BindGroupLayoutEntry> = (0..)
            .zip(bindings)
            .map(|(binding, bound)| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: wgpu::BufferBindingType::Storage { read_only: bound.parts().2 },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            })
            .collect();
        let layout = wgpu::BindGroupLayoutDescriptor { label, entries: &entries };
        let bindings = self.device.create_bind_group_layout(&layout);
        let layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label,
            bind_group_layouts: &[Some(&bindings)],
            immediate_size: IMMEDIATES,
        });
        let options = wgpu::PipelineCompilationOptions {
            zero_initialize_workgroup_memory: false,
            ..Default::default()
        };
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label,
            layout: Some(&layout),
            module: &module,
            entry_point: None,
            compilation_options: options,
            cache: None,
        });
        Pipeline { pipeline, bindings }
    }

    fn submit(&self, recorder: &mut Recorder) {
        if let Some(mut encoder) = recorder.encoder.take() {
            let bindings = [Binding::Write(&self.commands.counter, 0..4)];
            let pipeline = self.pipeline(&shaders::count(), &bindings);
            self.dispatch(&mut encoder, &pipeline, &bindings, &[], [1; 3]);
            recorder.times = recorder.times.wrapping_add(1);
            self.queue.submit([encoder.finish()]);
        }
        recorder.commands = 0;
        recorder.work = 0.0;
    }

    /// Hands over what was recorded.
    pub(super) fn flush(&self) {
        self.submit(&mut lock(&self.commands.recorder));
    }

    /// Forgets what was recorded, and waits until the device has nothing to do.
    pub(super) fn forget_commands(&self) {
        let mut recorder = lock(&self.commands.recorder);
        *recorder = Recorder::default();
        if !self.is_lost() {
            self.queue.write_buffer(&self.commands.counter, 0, &[0; 4]);
            self.wait();
        }
    }

    /// Takes note of an upload, and waits for the device if there is much on its way.
    pub(super) fn uploaded(&self, bytes: u64) {
        let mut recorder = lock(&self.commands.recorder);
        recorder.uploaded += bytes;
        if recorder.uploaded > IN_FLIGHT {
            self.submit(&mut recorder);
            recorder.uploaded = 0;
            drop(recorder);
            self.wait();
        }
    }

    fn wait(&self) {
        // wgpu panics if the device is lost meanwhile.
        let polled = catch_unwind(AssertUnwindSafe(|| self.device.poll(wgpu::PollType::wait_indefinitely())));
        match polled {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => self.fail(error.to_string()),
            Err(_) => self.lose("lost while it was waited for"),
        }
    }

    /// Reads a buffer's first values, once all that was recorded is done.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) if that, or anything before it, went wrong.
    pub(super) fn read(&self, buffer: &Buffer, bytes: u64) -> Result<Vec<f32>> {
        let mut values = vec![0.0f32; bytes as usize / 4];
        let piece = PIECE.min(bytes);
        let usage = BufferUsages::MAP_READ | BufferUsages::COPY_DST;
        let staging = self.pool.take(&self.device, piece + 4, usage);
        for first in (0..bytes).step_by(piece.max(1) as usize) {
            let len = piece.min(bytes - first);
            let times = {
                let mut recorder = lock(&self.commands.recorder);
                let encoder = self.encoder(&mut recorder);
                encoder.copy_buffer_to_buffer(buffer, first, &staging, 0, len);
                encoder.copy_buffer_to_buffer(&self.commands.counter, 0, &staging, len, 4);
                let times = recorder.times;
                self.submit(&mut recorder);
                recorder.uploaded = 0;
                times
            };
            let (answer, answered) = mpsc::channel();
            staging.map_async(wgpu::MapMode::Read, ..len + 4, move |mapped| {
                // Nobody listens any more if something else went wrong.
                let _ = answer.send(mapped);
            });
            self.wait();
            self.check()?;
            // Another thread that waits for the device may be about to pass the answer on.
            match answered.recv() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(self.error(format!("can't be read back: {error}"))),
                Err(_) => return Err(self.error("did not answer")),
            }
            let view = staging.get_mapped_range(..len + 4).map_err(|error| self.error(error.to_string()))?;
            let (found, done) = view.split_at(len as usize);
            if done != times.to_le_bytes() {
                return Err(self.error(
                    "gave up on what it had to do without saying so: out of memory, or too slow for its driver",
                ));
            }
            bytemuck::cast_slice_mut(&mut values)[first as usize..][..len as usize].copy_from_slice(found);
            drop(view);
            staging.unmap();
        }
        self.pool.give(staging, usage);
        Ok(values)
    }
}
