package main

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"
)

var dictionary = map[uint16]string{1: "a", 4: "onMessage", 260: "room.room.join"}

func TestMessagesDecodeAsInPitaya(t *testing.T) {
	cases := []struct {
		encoded string
		want    message
	}{
		{"00000161", message{kind: messageRequest, route: "a"}},
		{"01000001", message{kind: messageRequest, route: "a"}},
		{"020161", message{kind: messageNotify, route: "a"}},
		{"070001", message{kind: messagePush, route: "a"}},
		{"048101", message{kind: messageResponse, id: 129}},
		{"240001", message{kind: messageResponse, isError: true, data: []byte{1}}},
		{"3400789c4aca49240601020000ffff33ff0f64", message{kind: messageResponse, isError: true, data: []byte(strings.Repeat("bla", 13))}},
		{"010101047b7d", message{kind: messageRequest, id: 1, route: "room.room.join", data: []byte("{}")}},
		{"1609" + hex.EncodeToString([]byte("onMessage")) + "789c4aa40300040000ffff7a4725e5", message{kind: messagePush, route: "onMessage", data: []byte(strings.Repeat("a", 100))}},
		{"0480808080808080808001", message{kind: messageResponse, id: 1 << 63}},
	}
	for _, expected := range cases {
		decoded, err := decodeMessage(mustDecodeHex(t, expected.encoded), dictionary)
		if err != nil {
			t.Errorf("%s: %v", expected.encoded, err)
			continue
		}
		if !bytes.Equal(decoded.data, expected.want.data) {
			t.Errorf("%s: payload %q", expected.encoded, decoded.data)
		}
		decoded.data, expected.want.data = nil, nil
		if decoded.kind != expected.want.kind || decoded.id != expected.want.id || decoded.route != expected.want.route || decoded.isError != expected.want.isError {
			t.Errorf("%s: %+v, want %+v", expected.encoded, decoded, expected.want)
		}
	}
}

func TestMessagesThatMustCloseTheConnectionAreRefused(t *testing.T) {
	for _, encoded := range []string{"", "00", "0801", "0e01", "0001", "00010261", "0601", "0080", "010103e7", "010104", "10070161", "10070161ab56ca4bcc4d55b252aa2012"} {
		if decoded, err := decodeMessage(mustDecodeHex(t, encoded), dictionary); err == nil {
			t.Errorf("%q decodes to %+v", encoded, decoded)
		}
	}
}

func TestMessagesEncodeToTheBytesOfPitaya(t *testing.T) {
	cases := map[string]message{
		"00010e" + hex.EncodeToString([]byte("room.room.join{}")): {kind: messageRequest, id: 1, route: "room.room.join", data: []byte("{}")},
		"00ac020e" + hex.EncodeToString([]byte("room.room.join")): {kind: messageRequest, id: 300, route: "room.room.join"},
		"0609" + hex.EncodeToString([]byte(`onMessage{"x":1}`)):   {kind: messagePush, route: "onMessage", data: []byte(`{"x":1}`)},
		"0401" + hex.EncodeToString([]byte(`{"code":200}`)):       {kind: messageResponse, id: 1, data: []byte(`{"code":200}`)},
		"2401" + hex.EncodeToString([]byte(`{"code":"PIT-000"}`)): {kind: messageResponse, id: 1, isError: true, data: []byte(`{"code":"PIT-000"}`)},
	}
	for want, given := range cases {
		encoded, err := encodeMessage(given)
		if err != nil || hex.EncodeToString(encoded) != want {
			t.Errorf("%x, %v, want %s", encoded, err, want)
		}
	}
	if _, err := encodeMessage(message{kind: messagePush, route: strings.Repeat("a", 256)}); err == nil {
		t.Error("a route of 256 bytes was encoded")
	}
}

func TestHandshakeAnswersOfPitayaAreRead(t *testing.T) {
	plain := "010000417b22636f6465223a3230302c22737973223a7b2264696374223a7b7d2c22686561727462656174223a33302c2273657269616c697a6572223a226a736f6e227d7d"
	deflated := "01000082789c5c8e41aac3300c44ef326b13f293df8deed04328b6485d1a0b246ddae0bb97b49b92cd0cc383e1edc85a04348d63823f1db4a3d41c47676d4d72a80dab848b7bd5563818f4977ea09fe094a0ed2adb22e6a0cb77b9f32aa0ff0453dd864f9c5fe79e7013b6588403341f4662951ff52506c2ddb5a1f777000000ffffbe583e3b"
	for text, routes := range map[string]int{plain: 0, deflated: 5} {
		received, err := onlyPacket(mustDecodeHex(t, text))
		if err != nil || received.kind != packetHandshake {
			t.Fatal(received.kind, err)
		}
		decoded, err := decodeHandshakeResponse(received.body)
		if err != nil || decoded.Code != 200 || decoded.Sys.Heartbeat != 30 || len(decoded.Sys.Dict) != routes {
			t.Errorf("%+v, %v", decoded, err)
		}
	}
	if _, err := decodeHandshakeResponse([]byte(`{"code":200,"sys":{"heartbeat":30.5}}`)); err == nil {
		t.Error("a heartbeat with a fraction was accepted")
	}
}

func TestAPacketMustBeWholeAndAlone(t *testing.T) {
	for text, isGood := range map[string]bool{"03000000": true, "0300000003000000": false, "0300": false, "0200000201": false, "00000000": false, "06000000": false} {
		if _, err := onlyPacket(mustDecodeHex(t, text)); (err == nil) != isGood {
			t.Errorf("%s: %v", text, err)
		}
	}
}
