"""The public API as others see it: grpcio with stubs generated from our proto, health, reflection."""

import importlib
import pathlib
import sys
import tempfile
import unittest

import grpc
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from grpc_tools import protoc

import harness
from harness import golden, wait_until

MODEL = harness.MODELS / "dense-gpu"
TIMEOUT = harness.DEADLINE


def generated_stubs(folder):
    """The modules that `protoc` makes of our proto."""
    include = pathlib.Path(protoc.__file__).parent / "_proto"
    done = protoc.main(["protoc", f"-I{harness.ROOT / 'proto'}", f"-I{include}",
                        f"--python_out={folder}", f"--grpc_python_out={folder}",
                        "lapidary/v1/lapidary.proto"])
    assert done == 0, "protoc failed"
    sys.path.insert(0, folder)
    return (importlib.import_module("lapidary.v1.lapidary_pb2"),
            importlib.import_module("lapidary.v1.lapidary_pb2_grpc"))


class GrpcioTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.pb, cls.pb_grpc = generated_stubs(folder.name)
        cls.server = harness.Server(MODEL, "--compute", "fp32", "--threads", 1, "--kv-memory",
                                    "64MiB", "--served-model-name", "tiny")
        cls.addClassCleanup(cls.server.close)
        cls.channel = grpc.insecure_channel(cls.server.address)
        cls.addClassCleanup(cls.channel.close)
        cls.stub = cls.pb_grpc.LapidaryServiceStub(cls.channel)
        cls.case = golden("dense-gpu")["cases"][1]

    def request(self, max_tokens=64, **fields):
        pb = self.pb
        return pb.GenerateRequest(
            token_ids=pb.TokenIds(ids=self.case["prompt"]),
            sampling=pb.SamplingOptions(temperature=0),
            stopping=pb.StoppingOptions(max_tokens=max_tokens, ignore_eos=True), **fields)

    def refused(self, request, code):
        with self.assertRaises(grpc.RpcError) as caught:
            list(self.stub.Generate(request, timeout=TIMEOUT))
        self.assertEqual(caught.exception.code(), code, caught.exception.details())
        return caught.exception

    def violated_fields(self, error):
        status = rpc_status.from_call(error)
        self.assertIsNotNone(status, "no google.rpc.Status in the trailers")
        fields = []
        for detail in status.details:
            bad = error_details_pb2.BadRequest()
            if detail.Unpack(bad):
                fields += [v.field for v in bad.field_violations]
        return fields

    def test_generate_streams_the_golden_tokens(self):
        output = self.pb.OutputOptions(logprobs=5, prompt_logprobs=0)
        events = list(self.stub.Generate(self.request(output=output, request_id="mine"),
                                         timeout=TIMEOUT))
        kinds = [event.WhichOneof("event") for event in events]
        self.assertEqual(kinds[0], "prompt_scores")
        self.assertEqual(kinds[-2:], ["choice_finished", "usage"])
        self.assertGreater(kinds.count("delta"), 1, "not streamed")
        self.assertEqual({event.request_id for event in events}, {"mine"})
        deltas = [event.delta for event in events if event.HasField("delta")]
        ids = [i for delta in deltas for i in delta.token_ids]
        scores = [s for delta in deltas for s in delta.scores]
        self.assertEqual(ids, self.case["continuation"])
        prompt = len(self.case["prompt"])
        for score, want in zip(scores, self.case["logprobs"][prompt - 1:], strict=True):
            self.assertAlmostEqual(score.logprob, want, delta=5e-5)
            self.assertEqual(len(score.top), 5)
        # In one message or several: a prompt is computed in chunks.
        prompt_scores = [s for event in events for s in event.prompt_scores.scores]
        for score, want in zip(prompt_scores, self.case["logprobs"][:prompt - 1], strict=True):
            self.assertAlmostEqual(score.logprob, want, delta=5e-5)
        self.assertEqual(events[-2].choice_finished.reason, self.pb.FINISH_REASON_LENGTH)
        self.assertEqual(events[-1].usage.prompt_tokens, prompt)
        self.assertEqual(events[-1].usage.completion_tokens, 64)

    def test_several_choices(self):
        request = self.request(max_tokens=12, n=3)
        request.sampling.temperature = 1.0
        request.sampling.seed = 5

        def ask():
            ids = [[], [], []]
            for event in self.stub.Generate(request, timeout=TIMEOUT):
                if event.HasField("delta"):
                    ids[event.delta.choice] += event.delta.token_ids
            return ids

        first = ask()
        self.assertEqual([len(ids) for ids in first], [12, 12, 12])
        self.assertEqual(len(set(map(tuple, first))), 3, "choices are the same")
        self.assertEqual(ask(), first, "same seed, other tokens")

    def test_tokenize_and_back(self):
        text = "The harbour was quiet: \u00e9\u4e2d\U0001f600 <bos>"
        tokens = self.stub.Tokenize(self.pb.TokenizeRequest(text=text, add_bos=True), timeout=TIMEOUT)
        self.assertEqual(tokens.token_ids[0], 2)
        self.assertNotIn(2, tokens.token_ids[1:], "a marker in text became a control token")
        self.assertEqual(len(tokens.token_ids), len(tokens.tokens))
        back = self.stub.Detokenize(self.pb.DetokenizeRequest(token_ids=tokens.token_ids[1:]),
                                    timeout=TIMEOUT)
        self.assertEqual(back.text, text)

    def test_models(self):
        models = self.stub.ListModels(self.pb.ListModelsRequest(), timeout=TIMEOUT).models
        self.assertEqual([m.name for m in models], ["tiny"])
        self.stub.GetModel(self.pb.GetModelRequest(model="tiny"), timeout=TIMEOUT)
        with self.assertRaises(grpc.RpcError) as caught:
            self.stub.GetModel(self.pb.GetModelRequest(model="large"), timeout=TIMEOUT)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.NOT_FOUND)

    def test_errors_name_the_field(self):
        request = self.request()
        request.sampling.top_p = 1.5
        error = self.refused(request, grpc.StatusCode.INVALID_ARGUMENT)
        self.assertEqual(self.violated_fields(error), ["sampling.top_p"])

        request = self.request()
        request.token_ids.ids.append(100000)
        error = self.refused(request, grpc.StatusCode.INVALID_ARGUMENT)
        self.assertTrue(self.violated_fields(error)[0].startswith("token_ids"))

        self.refused(self.request(model="large"), grpc.StatusCode.NOT_FOUND)
        self.refused(self.pb.GenerateRequest(), grpc.StatusCode.INVALID_ARGUMENT)

    def test_deadline(self):
        with self.assertRaises(grpc.RpcError) as caught:
            list(self.stub.Generate(self.request(max_tokens=900), timeout=0.02))
        self.assertEqual(caught.exception.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
        self.await_idle()

    def test_cancel(self):
        call = self.stub.Generate(self.request(max_tokens=900), timeout=TIMEOUT)
        next(call)
        call.cancel()
        self.await_idle()

    def test_a_live_request_id_is_taken(self):
        call = self.stub.Generate(self.request(max_tokens=900, request_id="twice"), timeout=TIMEOUT)
        next(call)
        self.refused(self.request(request_id="twice"), grpc.StatusCode.ALREADY_EXISTS)
        call.cancel()
        self.await_idle()

    def await_idle(self):
        wait_until(lambda: self.server.metric("lapidary_requests_running") == 0, "no request runs")
        wait_until(lambda: self.server.metric("lapidary_kv_usage_ratio") == 0, "all pages are free")

    def test_health_and_reflection(self):
        health = health_pb2_grpc.HealthStub(self.channel)
        for service in ("", "lapidary.v1.LapidaryService"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT)
            self.assertEqual(answer.status, health_pb2.HealthCheckResponse.SERVING)
        reflection = reflection_pb2_grpc.ServerReflectionStub(self.channel)
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        services = next(reflection.ServerReflectionInfo(asked, timeout=TIMEOUT))
        names = [s.name for s in services.list_services_response.service]
        self.assertIn("lapidary.v1.LapidaryService", names)
        self.assertIn("grpc.health.v1.Health", names)


if __name__ == "__main__":
    harness.main()
