package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"strings"
	"time"

	pitaya "github.com/topfreegames/pitaya/v3/pkg"
	"github.com/topfreegames/pitaya/v3/pkg/component"

	"dragonfruit/interop/pitaya/lines"
)

// TestHandlers answer under the names of the demo server's test routes, so that one test can run against either.
type TestHandlers struct {
	component.Base
	app          pitaya.Pitaya
	events       *lines.Writer
	frontendType string
}

// crowd is the group of those who have joined.
const crowd = "crowd"

// Init makes the group of those who will join.
func (t *TestHandlers) Init() {
	if err := t.app.GroupCreate(context.Background(), crowd); err != nil {
		panic(err)
	}
}

// lowerFirst makes the method Echo the handler echo.
func lowerFirst(name string) string { return strings.ToLower(name[:1]) + name[1:] }

type answer struct {
	Code int `json:"code"`
}

func accepted() *answer { return &answer{Code: 200} }

type bindArgument struct {
	Name string `json:"name"`
}

type pushArgument struct {
	Name string `json:"name"`
	N    uint64 `json:"n"`
}

type broadcastArgument struct {
	Size int `json:"size"`
}

type sleepArgument struct {
	Ms int64 `json:"ms"`
}

type failArgument struct {
	Code     string            `json:"code"`
	Msg      string            `json:"msg"`
	Metadata map[string]string `json:"metadata"`
}

// Echo answers with the bytes that came.
func (t *TestHandlers) Echo(_ context.Context, data []byte) ([]byte, error) { return data, nil }

// Bind binds the session to a user.
func (t *TestHandlers) Bind(ctx context.Context, argument *bindArgument) (*answer, error) {
	if err := t.app.GetSessionFromCtx(ctx).Bind(ctx, argument.Name); err != nil {
		return nil, err
	}
	return accepted(), nil
}

// Push sends n pushes onPush, each its number in eight bytes. The caller's own go by its session, others by their name.
func (t *TestHandlers) Push(ctx context.Context, argument *pushArgument) (*answer, error) {
	session := t.app.GetSessionFromCtx(ctx)
	for number := range argument.N {
		data := binary.BigEndian.AppendUint64(nil, number)
		var err error
		if argument.Name == session.UID() {
			err = session.Push("onPush", data)
		} else {
			_, err = t.app.SendPushToUsers("onPush", data, []string{argument.Name}, t.frontendType)
		}
		if err != nil {
			return nil, err
		}
	}
	return accepted(), nil
}

// Join binds the caller and makes it one of the crowd.
func (t *TestHandlers) Join(ctx context.Context, argument *bindArgument) (*answer, error) {
	if _, err := t.Bind(ctx, argument); err != nil {
		return nil, err
	}
	if member, err := t.app.GroupContainsMember(ctx, crowd, argument.Name); err != nil || member {
		return accepted(), err
	}
	return accepted(), t.app.GroupAddMember(ctx, crowd, argument.Name)
}

// Broadcast pushes one message of random bytes to the crowd.
func (t *TestHandlers) Broadcast(ctx context.Context, argument *broadcastArgument) (*answer, error) {
	data := make([]byte, max(argument.Size, 8))
	_, _ = rand.Read(data[8:])
	return accepted(), t.app.GroupBroadcast(ctx, t.frontendType, crowd, "onBroadcast", data)
}

// Kick kicks the caller.
func (t *TestHandlers) Kick(ctx context.Context) (*answer, error) {
	if err := t.app.GetSessionFromCtx(ctx).Kick(ctx); err != nil {
		return nil, err
	}
	return accepted(), nil
}

// KickUser kicks the user of this name.
func (t *TestHandlers) KickUser(_ context.Context, argument *bindArgument) (*answer, error) {
	if _, err := t.app.SendKickToUsers([]string{argument.Name}, t.frontendType); err != nil {
		return nil, err
	}
	return accepted(), nil
}

// Sleep answers late.
func (t *TestHandlers) Sleep(_ context.Context, argument *sleepArgument) (*answer, error) {
	time.Sleep(time.Duration(argument.Ms) * time.Millisecond)
	return accepted(), nil
}

// Fail answers with the given error.
func (t *TestHandlers) Fail(_ context.Context, argument *failArgument) (*answer, error) {
	return nil, pitaya.Error(errors.New(argument.Msg), argument.Code, argument.Metadata)
}

// Data stores the fields of the message in the session, at the frontend too, and answers with all that there are.
func (t *TestHandlers) Data(ctx context.Context, data []byte) ([]byte, error) {
	var fields map[string]any
	if err := json.Unmarshal(data, &fields); err != nil {
		return nil, pitaya.Error(err, "PIT-400")
	}
	session := t.app.GetSessionFromCtx(ctx)
	for key, value := range fields {
		if err := session.Set(key, value); err != nil {
			return nil, err
		}
	}
	if len(fields) > 0 {
		if err := session.PushToFront(ctx); err != nil {
			return nil, err
		}
	}
	return json.Marshal(session.GetData())
}

// Notify tells the test what came.
func (t *TestHandlers) Notify(_ context.Context, data []byte) {
	t.events.Write(lines.Event{Event: "notified", Body: data})
}
